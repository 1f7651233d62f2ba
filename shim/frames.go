package shim

import (
	"encoding/binary"
	"slices"
)

// frames cuts a stream of ttrpc messages into messages. Each begins with a header of 10 bytes:
// its length without the header, the stream id, the type and flags
// (https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md).
type frames struct {
	part []byte // of a message that is not complete
	skip int    // bytes left of a message of which only the header is kept
	// keep says that messages are kept as a whole.
	keep bool
}

const (
	headerSize = 10

	// messageResponse is the type of a message that answers a request.
	messageResponse = 2
)

// add takes the next bytes of the stream, and calls message with each message that they
// complete: its stream id, its type, and its bytes, or only its header.
func (f *frames) add(data []byte, message func(id uint32, kind byte, bytes []byte)) {
	for len(data) > 0 || f.isComplete() {
		if f.skip > 0 {
			n := min(f.skip, len(data))
			f.skip, data = f.skip-n, data[n:]
		} else {
			n := min(f.missing(), len(data))
			f.part, data = append(f.part, data[:n]...), data[n:]
			if len(f.part) == headerSize && !f.keep {
				f.skip = int(binary.BigEndian.Uint32(f.part))
			}
		}
		if f.isComplete() {
			message(binary.BigEndian.Uint32(f.part[4:]), f.part[8], f.part)
			f.part = nil
		}
	}
}

// missing returns how many bytes are missing to the header, or with it to the message.
func (f *frames) missing() int {
	if len(f.part) < headerSize {
		return headerSize - len(f.part)
	}
	return headerSize + int(binary.BigEndian.Uint32(f.part)) - len(f.part)
}

func (f *frames) isComplete() bool {
	if len(f.part) < headerSize || f.skip > 0 {
		return false
	}
	return !f.keep || f.missing() == 0
}

// isBetween says whether the stream is between two messages.
func (f *frames) isBetween() bool { return len(f.part) == 0 }

// unanswered are the requests of a connection that have been read and not answered.
type unanswered struct {
	in   frames
	out  frames
	read []request // in the order in which they came
}

// request is what has been read for a stream: the messages, with their headers.
type request struct {
	id    uint32
	bytes []byte
}

func newUnanswered() *unanswered { return &unanswered{in: frames{keep: true}} }

// received takes bytes that were read from the connection.
func (u *unanswered) received(data []byte) {
	u.in.add(data, func(id uint32, _ byte, bytes []byte) {
		if i := u.find(id); i >= 0 {
			u.read[i].bytes = append(u.read[i].bytes, bytes...)
			return
		}
		u.read = append(u.read, request{id, bytes})
	})
}

// sent takes bytes that were written to the connection.
func (u *unanswered) sent(data []byte) {
	u.out.add(data, func(id uint32, kind byte, _ []byte) {
		if i := u.find(id); i >= 0 && kind == messageResponse {
			u.read = slices.Delete(u.read, i, i+1)
		}
	})
}

func (u *unanswered) find(id uint32) int {
	return slices.IndexFunc(u.read, func(r request) bool { return r.id == id })
}

// bytes returns what a server has to read again to know the same requests.
func (u *unanswered) bytes() (all []byte) {
	for _, r := range u.read {
		all = append(all, r.bytes...)
	}
	return append(all, u.in.part...)
}
