package oci

import (
	"encoding/json"
	"fmt"
	"os"
)

// WriteJSON writes v to a file as JSON, with [ReplaceFile].
func WriteJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return ReplaceFile(path, data)
}

// ReplaceFile replaces a file's content, or leaves the file as it was. It does not sync the
// file to disk, because bundles are on a tmpfs.
func ReplaceFile(path string, data []byte) error {
	temp := path + ".tmp"
	err := os.WriteFile(temp, data, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp) // a full disk leaves a part of it
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// ReadJSON decodes a JSON file into v. It fails with [os.ErrNotExist] if there is no file.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("cannot decode %s: %w", path, err)
	}
	return nil
}
