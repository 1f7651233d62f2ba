package cgroups

import "testing"

// BenchmarkStat measures what containerd asks for each second of each task.
func BenchmarkStat(b *testing.B) {
	c, err := Create("/pause-bench", false, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Remove(b.Context()); err != nil {
			b.Log(err)
		}
	})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Stat(); err != nil {
			b.Fatal(err)
		}
	}
}
