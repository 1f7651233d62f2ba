package oci

import (
	"encoding/json"
	"fmt"
	"os"
)

// WriteJSON encodes v into a file, see [ReplaceFile].
func WriteJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return ReplaceFile(path, data)
}

// ReplaceFile replaces a file as a whole, or leaves it as it was. Bundles are on a tmpfs,
// so it need not be synced to disk.
func ReplaceFile(path string, data []byte) error {
	temp := path + ".tmp"
	err := os.WriteFile(temp, data, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp) // on a full disk there is a part of it
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// ReadJSON decodes a file. Its error is [os.ErrNotExist] if there is none.
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
