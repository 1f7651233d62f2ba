// Package wire encodes and decodes messages of protocol buffers by the struct tags
// of their generated code alone.
//
// proto.Marshal and proto.Unmarshal build tables of a message, and of all that are
// below it, when they see the first one. The messages of containerd's Task API take
// 150 kB of them, and the metrics 190 kB, which stay for good in a process that is to
// have little more than a megabyte; and they leave more garbage each time. The struct
// tags say all that is needed here.
//
// It knows the kinds of fields that these messages have: no groups, no oneofs, no
// numbers of fixed size but double, none in zigzag form. Other fields are an error.
// Fields that a struct does not have are passed over.
package wire

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
	"google.golang.org/protobuf/types/known/anypb"
)

// Marshal returns the encoding of a message, which is a pointer to a struct. A field
// without the tag "protobuf" is not part of it.
func Marshal(m any) ([]byte, error) {
	return appendMessage(make([]byte, 0, 256), reflect.ValueOf(m).Elem())
}

// Unmarshal decodes a message into a pointer to a struct whose fields have tags as those
// of generated code. Of a tag only kind and number count: `protobuf:"bytes,3"` is enough.
func Unmarshal(data []byte, m any) error {
	return decodeMessage(data, reflect.ValueOf(m).Elem())
}

// MarshalAny returns a message in an Any with a type URL of containerd's kind, which is
// the message's full name alone (typeurl.TypeURL).
func MarshalAny(name string, m any) (*anypb.Any, error) {
	value, err := Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: name, Value: value}, nil
}

// Message returns a message that proto.Marshal and proto.Unmarshal, and so whoever calls
// them, encode and decode by this package. It is of no use for anything else.
func Message(m any) proto.Message { return message{m} }

type message struct{ content any }

// Reset is what proto.Unmarshal calls first.
func (m message) Reset() { reflect.ValueOf(m.content).Elem().SetZero() }

// ProtoReflect implements [proto.Message].
func (m message) ProtoReflect() protoreflect.Message {
	return reflection{message: m}
}

// reflection has no more than proto.Marshal and proto.Unmarshal need; the rest is not there.
type reflection struct {
	protoreflect.Message
	message message
}

// IsValid implements [protoreflect.Message].
func (r reflection) IsValid() bool { return true }

// Interface implements [protoreflect.Message].
func (r reflection) Interface() protoreflect.ProtoMessage { return r.message }

// ProtoMethods implements [protoreflect.Message].
func (r reflection) ProtoMethods() *protoiface.Methods { return &methods }

var methods = protoiface.Methods{
	Marshal: func(in protoiface.MarshalInput) (out protoiface.MarshalOutput, err error) {
		out.Buf, err = appendMessage(in.Buf, structOf(in.Message))
		return out, err
	},
	Unmarshal: func(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
		return protoiface.UnmarshalOutput{}, decodeMessage(in.Buf, structOf(in.Message))
	},
	// There are no required fields.
	CheckInitialized: func(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
		return protoiface.CheckInitializedOutput{}, nil
	},
}

func structOf(m protoreflect.Message) reflect.Value {
	return reflect.ValueOf(m.Interface().(message).content).Elem()
}

// numbers are the field numbers of the struct types seen so far, 0 for a field that is
// not of the message.
var numbers sync.Map // of reflect.Type to []protowire.Number

func fieldNumbers(t reflect.Type) ([]protowire.Number, error) {
	if known, ok := numbers.Load(t); ok {
		return known.([]protowire.Number), nil
	}
	list := make([]protowire.Number, t.NumField())
	for i := range list {
		field := t.Field(i)
		if _, ok := field.Tag.Lookup("protobuf_oneof"); ok {
			return nil, fmt.Errorf("field %s of %s: oneofs are not known", field.Name, t)
		}
		tag, ok := field.Tag.Lookup("protobuf")
		if !ok {
			continue
		}
		kind, rest, _ := strings.Cut(tag, ",")
		number, _, _ := strings.Cut(rest, ",")
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("tag %q of field %s of %s: %w", tag, field.Name, t, err)
		}
		if strings.HasPrefix(kind, "zigzag") {
			return nil, fmt.Errorf("field %s of %s: numbers in zigzag form are not known", field.Name, t)
		}
		list[i] = protowire.Number(n)
	}
	numbers.Store(t, list)
	return list, nil
}
