package task

import (
	"fmt"
	"reflect"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// Decoding of messages of Kubernetes' CRI, without its API, which is larger than
// this program. The fields that are needed are declared in structs, by the number
// that the tag "wire" gives; all others are passed over.

// decodeWire decodes a message into a struct. Fields can be strings, bool, int64,
// int32 and uint32, structs and pointers to them, slices of strings, structs and
// int64, and maps of strings.
func decodeWire(data []byte, message reflect.Value) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		size := protowire.ConsumeFieldValue(number, kind, data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		if field := wireField(message, number); field.IsValid() {
			if err := decodeField(data[:size], kind, field); err != nil {
				return fmt.Errorf("field %d of %s: %w", number, message.Type(), err)
			}
		}
		data = data[size:]
	}
	return nil
}

func wireField(message reflect.Value, number protowire.Number) reflect.Value {
	t := message.Type()
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("wire") == strconv.Itoa(int(number)) {
			return message.Field(i)
		}
	}
	return reflect.Value{}
}

func decodeField(data []byte, kind protowire.Type, field reflect.Value) error {
	switch kind {
	case protowire.VarintType:
		value, _ := protowire.ConsumeVarint(data)
		return setNumber(value, field)
	case protowire.BytesType:
		value, _ := protowire.ConsumeBytes(data)
		return setBytes(value, field)
	}
	return fmt.Errorf("unexpected wire type %d", kind)
}

func setNumber(value uint64, field reflect.Value) error {
	switch field.Kind() {
	case reflect.Bool:
		field.SetBool(protowire.DecodeBool(value))
	case reflect.Int64, reflect.Int32:
		field.SetInt(int64(value))
	case reflect.Uint32:
		field.SetUint(value)
	case reflect.Slice:
		field.Set(reflect.Append(field, reflect.ValueOf(int64(value))))
	default:
		return fmt.Errorf("a number for %s", field.Type())
	}
	return nil
}

func setBytes(value []byte, field reflect.Value) error {
	switch field.Kind() {
	case reflect.String:
		field.SetString(string(value))
	case reflect.Struct:
		return decodeWire(value, field)
	case reflect.Pointer:
		if field.IsNil() {
			field.Set(reflect.New(field.Type().Elem()))
		}
		return decodeWire(value, field.Elem())
	case reflect.Map:
		return addEntry(value, field)
	case reflect.Slice:
		return addElement(value, field)
	default:
		return fmt.Errorf("bytes for %s", field.Type())
	}
	return nil
}

func addEntry(value []byte, field reflect.Value) error {
	var entry struct {
		Key   string `wire:"1"`
		Value string `wire:"2"`
	}
	if err := decodeWire(value, reflect.ValueOf(&entry).Elem()); err != nil {
		return err
	}
	if field.IsNil() {
		field.Set(reflect.MakeMap(field.Type()))
	}
	field.SetMapIndex(reflect.ValueOf(entry.Key), reflect.ValueOf(entry.Value))
	return nil
}

func addElement(value []byte, field reflect.Value) error {
	if field.Type().Elem().Kind() == reflect.Int64 { // packed
		for len(value) > 0 {
			number, n := protowire.ConsumeVarint(value)
			if n < 0 {
				return protowire.ParseError(n)
			}
			field.Set(reflect.Append(field, reflect.ValueOf(int64(number))))
			value = value[n:]
		}
		return nil
	}
	element := reflect.New(field.Type().Elem()).Elem()
	if err := setBytes(value, element); err != nil {
		return err
	}
	field.Set(reflect.Append(field, element))
	return nil
}
