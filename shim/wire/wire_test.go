package wire

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	eventsapi "github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	forwardapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// messages are all messages that are in the same files as these, and so all that a shim
// has to do with.
func messages(t *testing.T) (all []protoreflect.MessageType) {
	t.Helper()
	for _, m := range []proto.Message{
		&v1.Metrics{}, &v2.Metrics{}, &taskapi.CreateTaskRequest{}, &sandboxapi.CreateSandboxRequest{},
		&eventsapi.TaskCreate{}, &forwardapi.ForwardRequest{}, &options.Options{}, &runtimeoptions.Options{},
		&anypb.Any{}, &emptypb.Empty{}, &timestamppb.Timestamp{},
	} {
		declared := m.ProtoReflect().Descriptor().ParentFile().Messages()
		for i := range declared.Len() {
			found, err := protoregistry.GlobalTypes.FindMessageByName(declared.Get(i).FullName())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found)
		}
	}
	return all
}

// All fields are filled, with lists of none, one and many, and with the largest and the
// smallest numbers: what is encoded here must be the same message to others, and what
// others have encoded to this package.
func TestEncodingIsThatOfProtobuf(t *testing.T) {
	for _, kind := range messages(t) {
		for length := range 4 {
			for _, number := range []uint64{0, 1, 127, 128, math.MaxUint32, math.MaxUint64} {
				t.Run(fmt.Sprintf("%s/%d/%d", kind.Descriptor().FullName(), length, number), func(t *testing.T) {
					m := kind.New().Interface()
					fill(reflect.ValueOf(m).Elem(), length, number)
					encoded, err := Marshal(m)
					if err != nil {
						t.Fatal(err)
					}
					decoded := kind.New().Interface()
					if err := proto.Unmarshal(encoded, decoded); err != nil {
						t.Fatal(err)
					}
					equal(t, m, decoded)

					if encoded, err = proto.Marshal(m); err != nil {
						t.Fatal(err)
					}
					decoded = kind.New().Interface()
					if err := Unmarshal(encoded, decoded); err != nil {
						t.Fatal(err)
					}
					equal(t, m, decoded)
				})
			}
		}
	}
}

func equal(t *testing.T, want, got proto.Message) {
	t.Helper()
	if !proto.Equal(want, got) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(got.ProtoReflect().GetUnknown()) > 0 {
		t.Error("unknown fields were written")
	}
}

// fill sets all exported fields of a message. Lists get the length, and texts a length
// that needs two bytes at times.
func fill(v reflect.Value, length int, number uint64) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(number > 0)
	case reflect.Int32, reflect.Int64:
		v.SetInt(int64(number))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(number)
	case reflect.Float64:
		v.SetFloat(float64(number) / 3)
	case reflect.String:
		v.SetString(strings.Repeat("ä", length*30))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), length, number)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), length, length))
		for i := range length {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint(uint64(200 + i))
			} else {
				fill(v.Index(i), length, number)
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for i := range length {
			value := reflect.New(v.Type().Elem()).Elem()
			fill(value, i, number)
			v.SetMapIndex(reflect.ValueOf(strings.Repeat("k", i)), value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), length, number)
			}
		}
	default:
		panic("a field of type " + v.Type().String())
	}
}

// This is the way that ttrpc takes.
func TestMessageIsEncodedByThisPackage(t *testing.T) {
	want := &taskapi.StartRequest{ID: "c1", ExecID: "e1"}
	encoded, err := proto.Marshal(Message(want))
	if err != nil {
		t.Fatal(err)
	}
	got := &taskapi.StartRequest{ID: "what was there before"}
	if err := proto.Unmarshal(encoded, Message(got)); err != nil {
		t.Fatal(err)
	}
	equal(t, want, got)
	got = &taskapi.StartRequest{}
	if err := proto.Unmarshal(encoded, got); err != nil {
		t.Fatal(err)
	}
	equal(t, want, got)
}

func TestMarshalAny(t *testing.T) {
	want := &options.ProcessDetails{ExecID: "e1"}
	encoded, err := MarshalAny("containerd.runc.v1.ProcessDetails", want)
	if err != nil {
		t.Fatal(err)
	}
	if encoded.TypeUrl != "containerd.runc.v1.ProcessDetails" {
		t.Errorf("type URL %q", encoded.TypeUrl)
	}
	got, err := encoded.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, want, got)
}

func TestDamagedMessages(t *testing.T) {
	whole, err := proto.Marshal(&taskapi.CreateTaskRequest{
		ID: "c1", Bundle: "/bundle", Terminal: true, Options: &anypb.Any{TypeUrl: "o", Value: []byte{1, 2, 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		cut := whole[:i]
		// What is cut between two fields is a message; both must be of the same opinion.
		if got, want := Unmarshal(cut, &taskapi.CreateTaskRequest{}), proto.Unmarshal(cut, &taskapi.CreateTaskRequest{}); (got == nil) != (want == nil) {
			t.Errorf("%d of %d bytes: %v, and by protobuf %v", i, len(whole), got, want)
		}
	}
	for name, data := range map[string][]byte{
		"text that is not UTF-8": {1<<3 | 2, 1, 0xff},
		"a number for a text":    {1 << 3, 1},
		"a text for a number":    {4<<3 | 2, 1, 'x'},
	} {
		if err := Unmarshal(data, &struct {
			Text   string `protobuf:"bytes,1"`
			Number uint32 `protobuf:"varint,4"`
		}{}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := Marshal(&taskapi.StartRequest{ID: "\xff"}); err == nil {
		t.Error("text that is not UTF-8 was encoded")
	}
}

func TestUnknownKindsOfFieldsAreAnError(t *testing.T) {
	for _, m := range []any{
		&struct {
			F float32 `protobuf:"fixed32,1"`
		}{1},
		&struct {
			F int32 `protobuf:"zigzag32,1"`
		}{1},
		&struct {
			F any `protobuf_oneof:"f"`
		}{1},
		&struct {
			F map[uint32]string `protobuf:"bytes,1"`
		}{map[uint32]string{1: "a"}},
	} {
		if _, err := appendMessage(nil, reflect.ValueOf(m).Elem()); err == nil {
			t.Errorf("%+v was encoded", m)
		}
	}
}
