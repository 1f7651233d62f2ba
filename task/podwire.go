package task

// Decoding of CRI's PodSandboxConfig. Its generated Go type, in k8s.io/cri-api, brings a
// gRPC server and client along, which would double the size of the program. So the fields
// that a sandbox needs are decoded here, with protobuf's own package for its wire format.
// As in protobuf, a later value of a field replaces an earlier one or is merged with it,
// and fields that are not in a table are skipped.

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields says how to decode the fields of a message, by their numbers.
type fields map[protowire.Number]field

// field has the wire type of a field, and the function that stores its value.
type field struct {
	wire protowire.Type
	set  func(v value) error
	// unpacked says that the values of a repeated field may also be encoded one by one.
	unpacked bool
}

// errWireType is the error for a field with the wrong wire type.
var errWireType = errors.New("wrong wire type")

// value is an encoded value: number for a varint, bytes otherwise.
type value struct {
	number uint64
	bytes  []byte
}

func (f fields) decode(data []byte) error {
	for len(data) > 0 {
		number, wire, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		known, ok := f[number]
		if !ok {
			if n = protowire.ConsumeFieldValue(number, wire, data); n < 0 {
				return fmt.Errorf("field %d: %w", number, protowire.ParseError(n))
			}
			data = data[n:]
			continue
		}
		var v value
		switch wire {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(data)
		}
		switch {
		case wire != known.wire && !(known.unpacked && wire == protowire.VarintType):
			return fmt.Errorf("field %d: %w %d, not %d", number, errWireType, wire, known.wire)
		case n < 0:
			return fmt.Errorf("field %d: %w", number, protowire.ParseError(n))
		}
		if err := known.set(v); err != nil {
			return fmt.Errorf("field %d: %w", number, err)
		}
		data = data[n:]
	}
	return nil
}

func message(f fields) field {
	return field{wire: protowire.BytesType, set: func(v value) error { return f.decode(v.bytes) }}
}

// optional is a message that stays nil if it is absent.
func optional[M any](to **M, f func(*M) fields) field {
	return field{wire: protowire.BytesType, set: func(v value) error {
		if *to == nil {
			*to = new(M)
		}
		return f(*to).decode(v.bytes)
	}}
}

func repeated[M any](to *[]M, f func(*M) fields) field {
	return field{wire: protowire.BytesType, set: func(v value) error {
		var m M
		if err := f(&m).decode(v.bytes); err != nil {
			return err
		}
		*to = append(*to, m)
		return nil
	}}
}

func number[N ~int32 | ~uint32 | ~int64](to *N) field {
	return field{wire: protowire.VarintType, set: func(v value) error {
		*to = N(v.number)
		return nil
	}}
}

func numbers(to *[]int64) field {
	return field{wire: protowire.BytesType, unpacked: true, set: func(v value) error {
		if v.bytes == nil {
			*to = append(*to, int64(v.number))
			return nil
		}
		for data := v.bytes; len(data) > 0; {
			x, n := protowire.ConsumeVarint(data)
			if n < 0 {
				return protowire.ParseError(n)
			}
			*to = append(*to, int64(x))
			data = data[n:]
		}
		return nil
	}}
}

func flag(to *bool) field {
	return field{wire: protowire.VarintType, set: func(v value) error {
		*to = protowire.DecodeBool(v.number)
		return nil
	}}
}

func text(to *string) field {
	return field{wire: protowire.BytesType, set: func(v value) (err error) {
		*to, err = v.text()
		return err
	}}
}

func texts(to *[]string) field {
	return field{wire: protowire.BytesType, set: func(v value) error {
		s, err := v.text()
		*to = append(*to, s)
		return err
	}}
}

// textMap decodes one entry of a map: a message with key and value.
func textMap(to *map[string]string) field {
	return field{wire: protowire.BytesType, set: func(v value) error {
		var key, value string
		if err := (fields{1: text(&key), 2: text(&value)}).decode(v.bytes); err != nil {
			return err
		}
		if *to == nil {
			*to = make(map[string]string)
		}
		(*to)[key] = value
		return nil
	}}
}

func (v value) text() (string, error) {
	if !utf8.Valid(v.bytes) {
		return "", errors.New("text is not valid UTF-8")
	}
	return string(v.bytes), nil
}
