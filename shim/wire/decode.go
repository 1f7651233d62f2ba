package wire

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// decodeMessage decodes a message into a struct.
func decodeMessage(data []byte, message reflect.Value) error {
	list, err := fieldNumbers(message.Type())
	if err != nil {
		return err
	}
	return eachField(data, func(number protowire.Number, kind protowire.Type, data []byte) error {
		i := slices.Index(list, number)
		if i < 0 {
			return nil
		}
		if err := decodeField(data, kind, message.Field(i)); err != nil {
			return fmt.Errorf("field %s of %s: %w", message.Type().Field(i).Name, message.Type(), err)
		}
		return nil
	})
}

// eachField calls f with the number, the wire type and the encoded value of each field.
func eachField(data []byte, f func(protowire.Number, protowire.Type, []byte) error) error {
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
		if err := f(number, kind, data[:size]); err != nil {
			return err
		}
		data = data[size:]
	}
	return nil
}

func decodeField(data []byte, kind protowire.Type, field reflect.Value) error {
	switch kind {
	case protowire.VarintType:
		value, _ := protowire.ConsumeVarint(data)
		return setNumber(value, field)
	case protowire.Fixed64Type:
		if field.Kind() == reflect.Float64 {
			value, _ := protowire.ConsumeFixed64(data)
			field.SetFloat(math.Float64frombits(value))
			return nil
		}
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
	case reflect.Int32:
		field.SetInt(int64(int32(value)))
	case reflect.Int64:
		field.SetInt(int64(value))
	case reflect.Uint32:
		field.SetUint(uint64(uint32(value)))
	case reflect.Uint64:
		field.SetUint(value)
	case reflect.Pointer: // an optional field
		number := reflect.New(field.Type().Elem())
		if err := setNumber(value, number.Elem()); err != nil {
			return err
		}
		field.Set(number)
	case reflect.Slice:
		return addNumber(value, field)
	default:
		return fmt.Errorf("a number for %s", field.Type())
	}
	return nil
}

func addNumber(value uint64, list reflect.Value) error {
	element := reflect.New(list.Type().Elem()).Elem()
	if err := setNumber(value, element); err != nil {
		return err
	}
	list.Set(reflect.Append(list, element))
	return nil
}

func setBytes(value []byte, field reflect.Value) error {
	switch field.Kind() {
	case reflect.String:
		if !utf8.Valid(value) {
			return errUTF8
		}
		field.SetString(string(value))
	case reflect.Struct:
		return decodeMessage(value, field)
	case reflect.Pointer:
		if field.IsNil() {
			field.Set(reflect.New(field.Type().Elem()))
		}
		return setBytes(value, field.Elem())
	case reflect.Map:
		return addEntry(value, field)
	case reflect.Slice:
		return addElements(value, field)
	default:
		return fmt.Errorf("bytes for %s", field.Type())
	}
	return nil
}

// addEntry adds an entry of a map, which is a message of its key, 1, and its value, 2.
func addEntry(data []byte, all reflect.Value) error {
	if all.Type().Key().Kind() != reflect.String {
		return fmt.Errorf("maps of type %s are not known", all.Type())
	}
	key, value := reflect.New(all.Type().Key()).Elem(), reflect.New(all.Type().Elem()).Elem()
	parts := []reflect.Value{key, value}
	err := eachField(data, func(number protowire.Number, kind protowire.Type, data []byte) error {
		if number > protowire.Number(len(parts)) {
			return nil
		}
		return decodeField(data, kind, parts[number-1])
	})
	if err != nil {
		return err
	}
	if all.IsNil() {
		all.Set(reflect.MakeMap(all.Type()))
	}
	all.SetMapIndex(key, value)
	return nil
}

// addElements sets bytes, adds a packed list of numbers, or adds an element.
func addElements(value []byte, list reflect.Value) error {
	switch list.Type().Elem().Kind() {
	case reflect.Uint8:
		list.SetBytes(slices.Clone(value))
		return nil
	case reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		for len(value) > 0 {
			number, n := protowire.ConsumeVarint(value)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := addNumber(number, list); err != nil {
				return err
			}
			value = value[n:]
		}
		return nil
	}
	element := reflect.New(list.Type().Elem()).Elem()
	if err := setBytes(value, element); err != nil {
		return err
	}
	list.Set(reflect.Append(list, element))
	return nil
}
