package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// watchOOM polls memory.events, which counts the kills in the cgroup and all below (cgroup-v2.rst), and cgroup.events,
// which changes when the last process is gone. The latter is needed because the kernel delays a notice of memory.events
// that follows another within 10 ms, and systemd may remove the cgroup before it comes.
func (t *v2Tree) watchOOM(since *OOMCount, f func()) (func() OOMCount, error) {
	if !exists(filepath.Join(t.dir, "memory.events")) && exists(filepath.Join(t.dir, "cgroup.events")) {
		return nil, errNoMemory
	}
	p, err := newPriorityPoll(filepath.Join(t.dir, "memory.events"), filepath.Join(t.dir, "cgroup.events"))
	if err != nil {
		return nil, err
	}
	kills, err := p.newV2Kills(groupFiles(t.dir))
	if err != nil {
		p.close()
		return nil, err
	}
	if since != nil {
		kills.seen, kills.early, kills.inGroups = oomCounters{since.Kills, since.Groups}, since.Early, since.InGroups
	}
	w := newOOMWatch(f)
	w.count = kills.count
	w.counted = func() OOMCount { return OOMCount{kills.seen.kills, kills.seen.groups, kills.early, kills.inGroups} }
	w.unit = w.enroll(t.dir)
	kills.unit = w.unit
	if since != nil {
		_, _ = w.check() // if it fails, the watch ends at its next check
	}
	return p.watch(w), nil
}

// watch counts anew whenever one of the files changes. It ends by stop, or when a count fails, as it does once the
// cgroup is gone. The removal of an empty cgroup changes no file.
func (p *priorityPoll) watch(w *oomWatch) (stop func() OOMCount) {
	go func() {
		defer p.close()
		defer w.finish() // before the descriptors that a count reads are closed
		for p.wait() == nil {
			if _, err := w.check(); err != nil {
				return
			}
		}
	}()
	return func() OOMCount {
		defer p.interrupt()
		return w.finish()
	}
}

// v2Kills counts the kills in a cgroup, of single processes or of whole groups.
//
// oom_kill counts processes. In a group kill the kernel first counts the victim in oom_kill, then the group in
// oom_group_kill, then every process of the group in oom_kill, often the victim once more (oom_kill_process,
// mm/oom_kill.c). So with memory.oom.group, by which Kubernetes has containers die as a whole, the number of groups is
// the right one.
type v2Kills struct {
	poll       *priorityPoll
	groupFiles []string // memory.oom.group of the cgroups that may be killed as a whole
	asGroup    bool     // what these files said last: they may go before the count has been read
	seen       oomCounters
	total      uint64
	early      bool // the victim of a group kill has been counted for the group, which the kernel had not counted yet
	inGroups   bool // there has been a group kill
	unit       *unitWatch
}

type oomCounters struct{ kills, groups uint64 }

// groupFiles returns the memory.oom.group files (since Linux 4.19) of a cgroup and of those around it in the same unit
// of a slice: crun makes a cgroup below the scope, and it is the scope that has the settings.
func groupFiles(dir string) []string {
	files := []string{filepath.Join(dir, "memory.oom.group")}
	slice, _ := sliceOf(dir)
	if slice == "" {
		return files
	}
	for dir = filepath.Dir(dir); dir != slice; dir = filepath.Dir(dir) {
		files = append(files, filepath.Join(dir, "memory.oom.group"))
	}
	return files
}

func (p *priorityPoll) newV2Kills(groupFiles []string) (*v2Kills, error) {
	k := &v2Kills{poll: p, groupFiles: groupFiles}
	k.diesAsGroup()
	var err error
	k.seen, err = k.read()
	return k, err
}

// count returns a number that grows by one with each kill of a process or of a group.
func (k *v2Kills) count() (uint64, error) {
	asGroup := k.diesAsGroup()
	now, err := k.read()
	if err != nil {
		return 0, err
	}
	kills, groups := growth(k.seen.kills, now.kills), growth(k.seen.groups, now.groups)
	k.seen = now
	switch {
	case groups > 0:
		if k.early {
			groups--
		}
		k.early, k.inGroups = false, true
		k.total += groups
	case kills == 0:
	case !asGroup:
		k.total += kills
	case !k.early && !k.inGroups:
		k.early = true
		k.total++
	}
	if k.unit != nil {
		k.unit.seen.Add(kills)
		k.unit.grouped = k.early || k.inGroups
	}
	return k.total, nil
}

func (k *v2Kills) diesAsGroup() bool {
	found := false
	for _, file := range k.groupFiles {
		value, err := readFile(file)
		if err != nil {
			return k.asGroup
		}
		found = found || strings.TrimSpace(value) == "1"
	}
	k.asGroup = found
	return found
}

func (k *v2Kills) read() (c oomCounters, err error) {
	texts, err := k.poll.read()
	if err != nil {
		return c, err
	}
	if c.kills, _, err = keyedValue(texts[0], "oom_kill"); err != nil {
		return c, err
	}
	c.groups, _, err = keyedValue(texts[0], "oom_group_kill") // since Linux 5.17
	return c, err
}

// priorityPoll waits for changes of cgroup files. The kernel announces them as EPOLLPRI, for which Go's poller cannot
// wait. But an epoll instance that waits for EPOLLPRI is readable when it has an event, and for that Go's poller can
// wait.
//
//	Go's poller ──EPOLLIN──► epoll ──EPOLLPRI──► memory.events, cgroup.events
type priorityPoll struct {
	epoll *os.File
	paths []string
	fds   []int
}

func newPriorityPoll(paths ...string) (*priorityPoll, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make epoll instance: %w", err)
	}
	p := &priorityPoll{paths: paths}
	// os.NewFile gives a descriptor to Go's poller only if it is non-blocking.
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("cannot make epoll instance: %w", err)
	}
	p.epoll = os.NewFile(uintptr(epfd), "cgroup events")
	for _, path := range paths {
		fd, err := openFile(path)
		if err != nil {
			p.close()
			return nil, err
		}
		p.fds = append(p.fds, fd)
		// Edge-triggered, because the files of a removed cgroup have an event for ever.
		event := unix.EpollEvent{Events: unix.EPOLLPRI | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			p.close()
			return nil, fmt.Errorf("cannot poll %s: %w", path, err)
		}
	}
	return p, nil
}

// wait returns when a file has changed since it was last read, or with an error after interrupt.
func (p *priorityPoll) wait() error {
	conn, err := p.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var events [2]unix.EpollEvent
	return conn.Read(func(epfd uintptr) bool {
		n, err := unix.EpollWait(int(epfd), events[:], 0)
		return n > 0 || err != nil
	})
}

// read returns the contents of the files. It reads through the polled descriptors, because only that tells the kernel
// that a change was seen.
func (p *priorityPoll) read() ([]string, error) {
	texts := make([]string, len(p.fds))
	for i, fd := range p.fds {
		var buf [512]byte
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: p.paths[i], Err: err}
		}
		texts[i] = string(buf[:n])
	}
	return texts, nil
}

// interrupt makes the current call of wait return, and all later ones.
func (p *priorityPoll) interrupt() {
	_ = p.epoll.Close()
}

// close releases all descriptors. Only the goroutine that reads may call it: if a descriptor were closed during a read,
// its number could pass to another file, and the read would hit that.
func (p *priorityPoll) close() {
	p.interrupt()
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	p.fds = nil
}
