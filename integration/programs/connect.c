/* connect SOCKET connects to a Unix socket and says what came of it, from within any container. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	if (argc != 2) return 2;
	strncpy(a.sun_path, argv[1], sizeof a.sun_path - 1);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	errno = 0;
	int failed = connect(s, (struct sockaddr *)&a, sizeof a);
	puts(strerror(errno));
	return failed ? 1 : 0;
}
