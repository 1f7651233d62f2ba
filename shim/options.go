package shim

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"containerd-shim-pause-v2/shim/api"
	"containerd-shim-pause-v2/shim/wire"
)

// DecodeOptions returns the runtime options in a, as clients of the Task API
// and containerd's CRI send them. An absent or empty a gives empty options.
//
// Two types carry them. Clients that know runc's options send
// containerd.runc.v1.Options. CRI sends those only for the runtime type
// "io.containerd.runc.v2"; for any other it sends runtimeoptions.v1.Options,
// with the options table of its config as TOML in config_body, or with the
// config_path that the table names (GenerateRuntimeOptions in
// internal/cri/config/config.go of containerd 2.4). The keys are the same, so
// that a config written for runc.v2 keeps its meaning. containerd 1.6 drops
// the table: there config_path is the only way.
func DecodeOptions(a *anypb.Any) (*api.Options, error) {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return &api.Options{}, nil
	}
	switch a.MessageName() {
	case api.OptionsName:
		var o api.Options
		if err := wire.Unmarshal(a.Value, &o); err != nil {
			return nil, fmt.Errorf("cannot decode runtime options: %w", err)
		}
		return &o, nil
	case api.GenericOptionsName:
		var generic api.GenericOptions
		if err := wire.Unmarshal(a.Value, &generic); err != nil {
			return nil, fmt.Errorf("cannot decode runtime options: %w", err)
		}
		return fromTOML(&generic)
	}
	return nil, fmt.Errorf("cannot decode runtime options: unknown type %q", a.TypeUrl)
}

func isOptions(a *anypb.Any) bool {
	name := a.MessageName()
	return name == api.OptionsName || name == api.GenericOptionsName
}

// fromTOML reads the body, or else the file, of generic options.
func fromTOML(generic *api.GenericOptions) (*api.Options, error) {
	source, text := "config body", generic.ConfigBody
	if len(text) == 0 && generic.ConfigPath != "" {
		var err error
		if text, err = os.ReadFile(generic.ConfigPath); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %w", err)
		}
		source = generic.ConfigPath
	}
	var o api.Options
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "[") {
			break // Tables follow the plain keys (TOML 1.0, "Table"), and runc's options have none.
		}
		if err := setTOML(&o, line); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %s: line %d: %w", source, i+1, err)
		}
	}
	return &o, nil
}

// setTOML sets the field of o that one line of TOML names. A whole TOML parser
// would weigh more than this package; what CRI writes is one `Key = value` a
// line, with strings, integers and booleans. Keys that o does not have are
// ignored, as they are in containerd.
func setTOML(o *api.Options, line string) error {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return nil
	}
	key, text, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("no key and value in %q", line)
	}
	key = strings.Trim(strings.TrimSpace(key), `"'`)
	// TOML decoders do not mind the case of a Go field.
	field := reflect.ValueOf(o).Elem().FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, key) })
	if !field.IsValid() {
		return nil
	}
	text, err := scalar(text)
	if err != nil {
		return err
	}
	switch field.Kind() {
	case reflect.String:
		if text, err = unquote(text); err == nil {
			field.SetString(text)
		}
	case reflect.Bool:
		switch text {
		case "true", "false":
			field.SetBool(text == "true")
		default:
			err = fmt.Errorf("%s is not a boolean: %s", key, text)
		}
	case reflect.Uint32:
		var n uint64
		if n, err = strconv.ParseUint(strings.ReplaceAll(text, "_", ""), 10, 32); err == nil {
			field.SetUint(n)
		}
	default:
		err = fmt.Errorf("%s has a type that is not known here", key)
	}
	return err
}

// scalar returns the value at the start of text, without the comment behind.
func scalar(text string) (string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return "", fmt.Errorf("no value")
	}
	end := strings.IndexByte(text, '#')
	if q := text[0]; q == '"' || q == '\'' {
		end = closingQuote(text)
		if end < 0 {
			return "", fmt.Errorf("no closing quote in %s", text)
		}
		if rest := strings.TrimSpace(text[end:]); rest != "" && rest[0] != '#' {
			return "", fmt.Errorf("text behind the closing quote in %s", text)
		}
	}
	if end >= 0 {
		text = text[:end]
	}
	return strings.TrimSpace(text), nil
}

// closingQuote returns the index behind the string that text starts with, or
// -1. In "basic" strings a backslash escapes, in 'literal' ones it is itself.
func closingQuote(text string) int {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == text[0]:
			return i + 1
		case text[i] == '\\' && text[0] == '"':
			i++
		}
	}
	return -1
}

func unquote(text string) (string, error) {
	switch text[0] {
	case '\'':
		return text[1 : len(text)-1], nil
	case '"':
		s, err := strconv.Unquote(text)
		if err != nil {
			return "", fmt.Errorf("bad string %s", text)
		}
		return s, nil
	}
	return "", fmt.Errorf("not a string: %s", text)
}
