package process

import (
	"encoding/json"
	"reflect"
	"strings"
)

// EncodeJSON encodes a value of structs, pointers, slices and what they are made of as
// [json.Marshal] does. That keeps tables of each struct type that it has seen, 20 to 40 kB
// for one with others in it, and takes a quarter of a millisecond to make them: too much for
// what is encoded once in the life of a process.
func EncodeJSON(v any) ([]byte, error) { return json.Marshal(plain(reflect.ValueOf(v))) }

// plain returns a value with maps in the place of structs.
func plain(v reflect.Value) any {
	switch {
	case !v.IsValid():
		return nil
	case v.Type().Implements(marshaler):
		return v.Interface()
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return plain(v.Elem())
	case reflect.Struct:
		fields := make(map[string]any)
		addFields(fields, v)
		return fields
	case reflect.Slice:
		if v.IsNil() {
			return nil
		}
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	}
	return v.Interface()
}

var marshaler = reflect.TypeFor[json.Marshaler]()

func addFields(fields map[string]any, v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case field.Anonymous && name == "":
			addFields(fields, v.Field(i))
		case !field.IsExported(), name == "-", options == "omitempty" && isEmpty(v.Field(i)):
		case name == "":
			fields[field.Name] = plain(v.Field(i))
		default:
			fields[name] = plain(v.Field(i))
		}
	}
}

// isEmpty is what package json means by omitempty.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}
