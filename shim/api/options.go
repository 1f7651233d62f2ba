package api

// Options is containerd.runc.v1.Options.
type Options struct {
	NoPivotRoot    bool   `protobuf:"varint,1" json:"no_pivot_root,omitempty"`
	NoNewKeyring   bool   `protobuf:"varint,2" json:"no_new_keyring,omitempty"`
	ShimCgroup     string `protobuf:"bytes,3" json:"shim_cgroup,omitempty"`
	IoUID          uint32 `protobuf:"varint,4" json:"io_uid,omitempty"`
	IoGID          uint32 `protobuf:"varint,5" json:"io_gid,omitempty"`
	BinaryName     string `protobuf:"bytes,6" json:"binary_name,omitempty"`
	Root           string `protobuf:"bytes,7" json:"root,omitempty"`
	SystemdCgroup  bool   `protobuf:"varint,9" json:"systemd_cgroup,omitempty"`
	CriuImagePath  string `protobuf:"bytes,10" json:"criu_image_path,omitempty"`
	CriuWorkPath   string `protobuf:"bytes,11" json:"criu_work_path,omitempty"`
	TaskAPIAddress string `protobuf:"bytes,12" json:"task_api_address,omitempty"`
	TaskAPIVersion uint32 `protobuf:"varint,13" json:"task_api_version,omitempty"`
}

// CheckpointOptions is containerd.runc.v1.CheckpointOptions.
type CheckpointOptions struct {
	Exit                bool     `protobuf:"varint,1"`
	OpenTCP             bool     `protobuf:"varint,2"`
	ExternalUnixSockets bool     `protobuf:"varint,3"`
	Terminal            bool     `protobuf:"varint,4"`
	FileLocks           bool     `protobuf:"varint,5"`
	EmptyNamespaces     []string `protobuf:"bytes,6"`
	CgroupsMode         string   `protobuf:"bytes,7"`
	ImagePath           string   `protobuf:"bytes,8"`
	WorkPath            string   `protobuf:"bytes,9"`
	ParentPath          string   `protobuf:"bytes,10"`
}

// ProcessDetails is containerd.runc.v1.ProcessDetails.
type ProcessDetails struct {
	ExecID string `protobuf:"bytes,1"`
}

// GenericOptions is runtimeoptions.v1.Options.
type GenericOptions struct {
	TypeURL    string `protobuf:"bytes,1"`
	ConfigPath string `protobuf:"bytes,2"`
	ConfigBody []byte `protobuf:"bytes,3"`
}

// The names of the messages, by which they are known in an Any.
const (
	OptionsName        = "containerd.runc.v1.Options"
	CheckpointName     = "containerd.runc.v1.CheckpointOptions"
	ProcessDetailsName = "containerd.runc.v1.ProcessDetails"
	GenericOptionsName = "runtimeoptions.v1.Options"
)
