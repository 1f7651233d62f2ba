package shim

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

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
func DecodeOptions(a *anypb.Any) (*options.Options, error) {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return &options.Options{}, nil
	}
	switch a.MessageName() {
	case runcOptionsName:
		var o options.Options
		if err := wire.Unmarshal(a.Value, &o); err != nil {
			return nil, fmt.Errorf("cannot decode runtime options: %w", err)
		}
		return &o, nil
	case genericOptionsName:
		var generic runtimeoptions.Options
		if err := wire.Unmarshal(a.Value, &generic); err != nil {
			return nil, fmt.Errorf("cannot decode runtime options: %w", err)
		}
		return fromTOML(&generic)
	}
	return nil, fmt.Errorf("cannot decode runtime options: unknown type %q", a.TypeUrl)
}

var (
	runcOptionsName    = (*options.Options)(nil).ProtoReflect().Descriptor().FullName()
	genericOptionsName = (*runtimeoptions.Options)(nil).ProtoReflect().Descriptor().FullName()
)

func isOptions(a *anypb.Any) bool {
	name := a.MessageName()
	return name == runcOptionsName || name == genericOptionsName
}

// fromTOML reads the body, or else the file, of generic options.
func fromTOML(generic *runtimeoptions.Options) (*options.Options, error) {
	source, text := "config body", generic.ConfigBody
	if len(text) == 0 && generic.ConfigPath != "" {
		var err error
		if text, err = os.ReadFile(generic.ConfigPath); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %w", err)
		}
		source = generic.ConfigPath
	}
	var o options.Options
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "[") {
			break // Tables follow the plain keys (TOML 1.0, "Table"), and runc's options have none.
		}
		if err := setTOML(o.ProtoReflect(), line); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %s: line %d: %w", source, i+1, err)
		}
	}
	return &o, nil
}

// setTOML sets the field of m that one line of TOML names. A whole TOML parser
// would weigh more than this package; what CRI writes is one `Key = value` a
// line, with strings, integers and booleans. Keys that m does not have are
// ignored, as they are in containerd.
func setTOML(m protoreflect.Message, line string) error {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return nil
	}
	key, text, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("no key and value in %q", line)
	}
	field := fieldOf(m, strings.Trim(strings.TrimSpace(key), `"'`))
	if field == nil {
		return nil
	}
	text, err := scalar(text)
	if err != nil {
		return err
	}
	switch field.Kind() {
	case protoreflect.StringKind:
		if text, err = unquote(text); err == nil {
			m.Set(field, protoreflect.ValueOfString(text))
		}
	case protoreflect.BoolKind:
		switch text {
		case "true", "false":
			m.Set(field, protoreflect.ValueOfBool(text == "true"))
		default:
			err = fmt.Errorf("%s is not a boolean: %s", field.Name(), text)
		}
	case protoreflect.Uint32Kind:
		var n uint64
		if n, err = strconv.ParseUint(strings.ReplaceAll(text, "_", ""), 10, 32); err == nil {
			m.Set(field, protoreflect.ValueOfUint32(uint32(n)))
		}
	default:
		err = fmt.Errorf("%s has a type that is not known here", field.Name())
	}
	return err
}

// fieldOf finds a field by the name that Go has for it: BinaryName is
// binary_name. TOML decoders do not mind the case of a Go field.
func fieldOf(m protoreflect.Message, key string) protoreflect.FieldDescriptor {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if strings.EqualFold(strings.ReplaceAll(string(fields.Get(i).Name()), "_", ""), key) {
			return fields.Get(i)
		}
	}
	return nil
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

// optionsEnv carries the runtime options from `start` to the server: containerd
// gives them to the one, but not with the requests of the Sandbox API.
const optionsEnv = "PAUSE_SHIM_OPTIONS"

func passOptions(o *options.Options) (string, error) {
	data, err := wire.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("cannot encode runtime options: %w", err)
	}
	return base64.StdEncoding.EncodeToString(data), nil
}

// takeOptions returns the options that `start` has passed on, and removes them
// from the environment, which OCI runtimes inherit.
func takeOptions() (*options.Options, error) {
	text := os.Getenv(optionsEnv)
	if err := os.Unsetenv(optionsEnv); err != nil {
		return nil, err
	}
	o := new(options.Options)
	data, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = wire.Unmarshal(data, o)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot decode $%s: %w", optionsEnv, err)
	}
	return o, nil
}
