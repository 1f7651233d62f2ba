package cgroups

import (
	"math"
	"reflect"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
)

// What is encoded here must be decoded by clients to the same message, whatever its fields hold: all of them are
// filled, with lists of none, one and many, and with the largest numbers.
func TestEncodingIsThatOfProtobuf(t *testing.T) {
	for _, message := range []proto.Message{&v1.Metrics{}, &v2.Metrics{}} {
		for length := range 4 {
			for _, number := range []uint64{0, 1, 127, 128, math.MaxUint32} {
				fill(reflect.ValueOf(message).Elem(), length, number)
				encoded, err := encode(nil, reflect.ValueOf(message).Elem())
				if err != nil {
					t.Fatal(err)
				}
				decoded := message.ProtoReflect().New().Interface()
				if err := proto.Unmarshal(encoded, decoded); err != nil {
					t.Fatalf("%T with %d: %v", message, number, err)
				}
				if !proto.Equal(message, decoded) {
					t.Errorf("%T with lists of %d and numbers of %d: got %v", message, length, number, decoded)
				}
				if len(decoded.ProtoReflect().GetUnknown()) > 0 {
					t.Errorf("%T: unknown fields were written", message)
				}
			}
		}
	}
}

// fill sets all exported fields of a message. Lists get the length, and texts a length that needs two bytes at times.
func fill(message reflect.Value, length int, number uint64) {
	for i := range message.NumField() {
		field := message.Field(i)
		if !message.Type().Field(i).IsExported() {
			continue
		}
		switch field.Kind() {
		case reflect.Uint32, reflect.Uint64:
			field.SetUint(number)
		case reflect.Float64:
			field.SetFloat(float64(number) / 3)
		case reflect.String:
			field.SetString(string(make([]byte, length*60)))
		case reflect.Pointer:
			field.Set(reflect.New(field.Type().Elem()))
			fill(field.Elem(), length, number)
		case reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), length, length))
			for j := range length {
				if e := field.Index(j); e.Kind() == reflect.Pointer {
					e.Set(reflect.New(e.Type().Elem()))
					fill(e.Elem(), length, number)
				} else {
					e.SetUint(number)
				}
			}
		}
	}
}

func TestUnknownKindsOfFieldsAreNotEncoded(t *testing.T) {
	message := struct {
		Flag bool `protobuf:"varint,1,opt,name=flag"`
	}{true}
	if _, err := encode(nil, reflect.ValueOf(message)); err == nil {
		t.Error("a field was left out without a word")
	}
}

func TestStatAnyIsStat(t *testing.T) {
	l, err := hostLayout()
	if err != nil {
		t.Fatal(err)
	}
	c := newCgroup(t, l, "wire", "{}")
	encoded, err := c.StatAny()
	if err != nil {
		t.Fatal(err)
	}
	m, err := encoded.UnmarshalNew()
	if err == nil && typeURL(m) != encoded.TypeUrl {
		t.Errorf("type %s became %s", encoded.TypeUrl, typeURL(m))
	}
}
