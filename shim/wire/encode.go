package wire

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// errUTF8 is for strings, which have to be text (protocol buffers, "Encoding").
var errUTF8 = errors.New("not UTF-8")

// appendMessage appends the fields of a message that are not zero.
func appendMessage(b []byte, message reflect.Value) ([]byte, error) {
	list, err := fieldNumbers(message.Type())
	if err != nil {
		return nil, err
	}
	for i, number := range list {
		if number == 0 || message.Field(i).IsZero() {
			continue
		}
		if b, err = appendField(b, number, message.Field(i)); err != nil {
			return nil, fmt.Errorf("%s: %w", message.Type().Field(i).Name, err)
		}
	}
	return b, nil
}

func appendField(b []byte, number protowire.Number, field reflect.Value) ([]byte, error) {
	switch field.Kind() {
	case reflect.Bool, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return appendNumber(protowire.AppendTag(b, number, protowire.VarintType), field), nil
	case reflect.Float64:
		return protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), math.Float64bits(field.Float())), nil
	case reflect.String:
		if !utf8.ValidString(field.String()) {
			return nil, errUTF8
		}
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), field.String()), nil
	case reflect.Pointer:
		if field.Elem().Kind() != reflect.Struct { // an optional field, which may be zero
			return appendField(b, number, field.Elem())
		}
		return appendBehindLength(b, number, func(b []byte) ([]byte, error) { return appendMessage(b, field.Elem()) })
	case reflect.Slice:
		return appendList(b, number, field)
	case reflect.Map:
		return appendMap(b, number, field)
	}
	return nil, fmt.Errorf("fields of type %s are not known", field.Type())
}

func appendNumber(b []byte, number reflect.Value) []byte {
	switch number.Kind() {
	case reflect.Bool:
		return protowire.AppendVarint(b, protowire.EncodeBool(number.Bool()))
	case reflect.Int32, reflect.Int64:
		return protowire.AppendVarint(b, uint64(number.Int()))
	default:
		return protowire.AppendVarint(b, number.Uint())
	}
}

// appendList appends bytes, a packed list of numbers, or each element by itself.
func appendList(b []byte, number protowire.Number, list reflect.Value) (_ []byte, err error) {
	if list.Len() == 0 {
		return b, nil
	}
	switch list.Type().Elem().Kind() {
	case reflect.Uint8:
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), list.Bytes()), nil
	case reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return appendBehindLength(b, number, func(b []byte) ([]byte, error) {
			for i := range list.Len() {
				b = appendNumber(b, list.Index(i))
			}
			return b, nil
		})
	}
	for i := range list.Len() {
		if b, err = appendField(b, number, list.Index(i)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// appendMap appends each entry as a message of its key, 1, and its value, 2.
func appendMap(b []byte, number protowire.Number, all reflect.Value) (_ []byte, err error) {
	if all.Type().Key().Kind() != reflect.String {
		return nil, fmt.Errorf("maps of type %s are not known", all.Type())
	}
	for entry := all.MapRange(); entry.Next(); {
		b, err = appendBehindLength(b, number, func(b []byte) ([]byte, error) {
			b, err := appendField(b, 1, entry.Key())
			if err != nil {
				return nil, err
			}
			return appendField(b, 2, entry.Value())
		})
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// appendBehindLength appends what f appends, behind its length. The length comes to stand
// in one byte, which is enough for all but a few messages; those are moved.
func appendBehindLength(b []byte, number protowire.Number, f func([]byte) ([]byte, error)) ([]byte, error) {
	b = append(protowire.AppendTag(b, number, protowire.BytesType), 0)
	start := len(b)
	b, err := f(b)
	if err != nil {
		return nil, err
	}
	size := len(b) - start
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+more:], b[start:start+size])
	}
	protowire.AppendVarint(b[:start-1], uint64(size))
	return b, nil
}
