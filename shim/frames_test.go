package shim

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// message returns a message of ttrpc.
func message(id uint32, kind byte, data string) []byte {
	m := make([]byte, headerSize, headerSize+len(data))
	binary.BigEndian.PutUint32(m, uint32(len(data)))
	binary.BigEndian.PutUint32(m[4:], id)
	m[8] = kind
	return append(m, data...)
}

const (
	requestKind = 1
	dataKind    = 3
)

// pieces calls f with the bytes, cut in all ways that a connection may.
func pieces(random *rand.Rand, data []byte, f func([]byte)) {
	for len(data) > 0 {
		n := 1 + random.IntN(min(len(data), 30))
		f(data[:n])
		data = data[n:]
	}
}

func TestUnansweredAreTheRequestsWithoutResponse(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		u := newUnanswered()
		in := bytes.Join([][]byte{
			message(1, requestKind, "first"), message(3, requestKind, ""), message(5, requestKind, "a longer request, the third"),
			message(5, dataKind, "more of it"), message(7, requestKind, "fourth"),
		}, nil)
		part := message(9, requestKind, "not complete")[:15]
		pieces(random, append(in, part...), u.received)
		if len(u.read) != 4 {
			t.Fatalf("%d requests, want 4", len(u.read))
		}
		if got := u.bytes(); !bytes.Equal(got, append(in, part...)) {
			t.Fatalf("to be read again: %q", got)
		}
		out := bytes.Join([][]byte{message(3, messageResponse, ""), message(5, dataKind, "no end"), message(7, messageResponse, "an answer")}, nil)
		pieces(random, append(out, message(1, messageResponse, "sent in part")[:12]...), u.sent)
		if u.out.isBetween() {
			t.Fatal("nothing is said to be sent in part")
		}
		want := bytes.Join([][]byte{
			message(1, requestKind, "first"), message(5, requestKind, "a longer request, the third"), message(5, dataKind, "more of it"), part,
		}, nil)
		if got := u.bytes(); !bytes.Equal(got, want) {
			t.Fatalf("to be read again: %q, want %q", got, want)
		}
		u.sent(message(1, messageResponse, "sent in part")[12:])
		if !u.out.isBetween() || len(u.read) != 1 {
			t.Fatalf("%d requests, want 1", len(u.read))
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(message(1, requestKind, "data"), 3)
	f.Add(message(1, messageResponse, ""), 1)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		u := newUnanswered()
		cut = min(max(cut, 0), len(data))
		u.received(data[:cut])
		u.received(data[cut:])
		whole := newUnanswered()
		whole.received(data)
		if !bytes.Equal(u.bytes(), whole.bytes()) {
			t.Errorf("cut at %d: %q, else %q", cut, u.bytes(), whole.bytes())
		}
		u.sent(data[:cut])
		u.sent(data[cut:])
	})
}
