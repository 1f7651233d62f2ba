package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// picture is a plot of some figures: bars by figure and engine, or lines if the names of
// the figures are numbers of something.
type picture struct {
	name   string // of the file
	title  string
	group  string
	prefix string // of the names of the figures, "" for all
	lines  bool   // against the number in the name
}

func pictures() []picture {
	return []picture{
		{name: "latency", title: "Latency, host network, one pod after the other", group: latencyGroup(hostNetwork, 1)},
		{name: "latency-many", title: "Latency, host network, 10 pods at a time", group: latencyGroup(hostNetwork, 10)},
		{name: "cpu", title: "CPU time of a pod with one container", group: cpuGroup},
		{name: "memory", title: "Private memory of an idle pod, by the number of pods", group: memoryGroup(1), prefix: memoryPrivate, lines: true},
		{name: "execs", title: "Growth of private memory by execs", group: execGrowth, lines: true},
		{name: "restarts", title: "Growth of private memory by restarts", group: restartGrowth, lines: true},
	}
}

func (p picture) figures(r *Result) (found []*Figure) {
	for _, f := range r.group(p.group) {
		if strings.HasPrefix(f.Name, p.prefix) {
			found = append(found, f)
		}
	}
	return found
}

// plots are the names of the pictures of which there is something to see.
func (r *Result) plots() (names []string) {
	for _, p := range pictures() {
		if len(p.figures(r)) > 0 {
			names = append(names, p.name)
		}
	}
	return names
}

// colours are those of engines: grey for what others are compared with.
var colours = []color.Color{
	color.RGBA{0x9a, 0x9a, 0x9a, 0xff},
	color.RGBA{0x32, 0x6c, 0xe5, 0xff},
	color.RGBA{0x12, 0xa1, 0x7a, 0xff},
	color.RGBA{0xd9, 0x7a, 0x1f, 0xff},
	color.RGBA{0x9b, 0x4d, 0xca, 0xff},
	color.RGBA{0xc0, 0x3a, 0x4b, 0xff},
	color.RGBA{0x5c, 0x48, 0x3a, 0xff},
}

// plot writes the pictures into a directory.
func (r *Result) plot(dir string) error {
	for _, p := range pictures() {
		figures := p.figures(r)
		if len(figures) == 0 {
			continue
		}
		canvas := plot.New()
		canvas.Title.Text = p.title
		canvas.Y.Label.Text = "median, " + figures[0].Unit
		canvas.BackgroundColor = color.White
		canvas.Legend.Top = true
		canvas.Add(plotter.NewGrid())
		draw := r.bars
		if p.lines {
			draw = r.lines
		}
		if err := draw(canvas, figures); err != nil {
			return fmt.Errorf("cannot plot %s: %w", p.name, err)
		}
		file := filepath.Join(dir, p.name+".svg")
		if err := canvas.Save(24*vg.Centimeter, 11*vg.Centimeter, file); err != nil {
			return fmt.Errorf("cannot write %s: %w", file, err)
		}
	}
	return nil
}

func (r *Result) bars(canvas *plot.Plot, figures []*Figure) error {
	width := vg.Points(60) / vg.Length(len(r.Engines))
	for i, engine := range r.Engines {
		var values plotter.Values
		for _, f := range figures {
			values = append(values, f.median(engine))
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = colours[i%len(colours)], 0
		bars.Offset = width * (vg.Length(i) - vg.Length(len(r.Engines)-1)/2)
		canvas.Add(bars)
		canvas.Legend.Add(engine, bars)
	}
	var names []string
	for _, f := range figures {
		name, _, _ := strings.Cut(f.Name, ":")
		names = append(names, strings.ReplaceAll(name, "`", ""))
	}
	canvas.NominalX(names...)
	canvas.Y.Min = 0
	canvas.Y.Max *= 1.25 // room for the legend
	return nil
}

func (r *Result) lines(canvas *plot.Plot, figures []*Figure) error {
	for i, engine := range r.Engines {
		var points plotter.XYs
		for _, f := range figures {
			if len(f.Samples[engine]) > 0 {
				points = append(points, plotter.XY{X: numberIn(f.Name), Y: f.median(engine)})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = colours[i%len(colours)], vg.Points(1.5)
		dots.Color, dots.Radius = line.Color, vg.Points(2.5)
		canvas.Add(line, dots)
		canvas.Legend.Add(engine, line, dots)
	}
	canvas.X.Label.Text = strings.Trim(strings.TrimLeft(lastWord(figures), "0123456789"), " ")
	canvas.Y.Min = min(canvas.Y.Min, 0)
	canvas.Y.Max *= 1.25
	return nil
}

// numberIn is the number in a name such as "after 100 execs"; "one" is 1.
func numberIn(name string) (n float64) {
	for _, word := range strings.Fields(name) {
		if word == "one" {
			return 1
		}
		if _, err := fmt.Sscanf(word, "%g", &n); err == nil {
			return n
		}
	}
	return 0
}

// lastWord says of what there are so many.
func lastWord(figures []*Figure) string {
	words := strings.Fields(figures[len(figures)-1].Name)
	return words[len(words)-1]
}
