// Package cmd holds `skerry convert`: files in, grids out. What a conversion is
// belongs to pkg/cloud/convert.
package cmd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/cloud/convert"
)

// maxFile bounds what is read of a file: more than an API server would take.
const maxFile = 16 << 20

type options struct {
	files   []string
	partial bool
	key     string
}

// errPartial makes scripts see that something was left out.
var errPartial = errors.New("not all of it could be converted (see above); --allow-partial does it all the same")

// NewConvertCommand returns `skerry convert`.
func NewConvertCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:   "convert -f FILE",
		Short: "Make grids of superedge.io/v1 objects",
		Long: `Make DeploymentGrids, StatefulSetGrids and ServiceGrids of apps.skerry.dev out of those of
superedge.io/v1, and write them as YAML. Other objects are passed on as they are. Fields that
cannot be converted are named on stderr; then the exit code is 1 and nothing is written,
unless --allow-partial is given. It asks no cluster.`,
		Example: "  skerry convert -f old.yaml > new.yaml\n  kubectl get deploymentgrids.superedge.io -A -o yaml | skerry convert -f - --grid-key skerry.dev/site",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		SilenceUsage: true,
	}
	command.Flags().StringSliceVarP(&o.files, "filename", "f", nil, "File or folder with YAML or JSON, - for stdin. Can be given more than once.")
	command.Flags().BoolVar(&o.partial, "allow-partial", false, "Leave out what cannot be converted.")
	command.Flags().StringVar(&o.key, "grid-key", "", "Label of nodes that tells sites apart, in place of the objects' gridUniqKey.")
	_ = command.MarkFlagRequired("filename")
	return command
}

func (o options) run(in io.Reader, out, notes io.Writer) error {
	var result []byte
	complete := true
	for _, file := range o.files {
		names, err := expand(file)
		if err != nil {
			return err
		}
		for _, name := range names {
			text, whole, err := o.file(name, in, notes)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			result, complete = append(result, text...), complete && whole
		}
	}
	if !complete && !o.partial {
		return errPartial
	}
	if _, err := out.Write(result); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// expand returns the files of a folder, not those of folders in it.
func expand(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("reading --filename: %w", err)
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var names []string
	for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
		found, err := filepath.Glob(filepath.Join(name, pattern))
		if err != nil {
			return nil, fmt.Errorf("reading --filename: %w", err)
		}
		names = append(names, found...)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("--filename %s: no .yaml, .yml or .json in it", name)
	}
	return names, nil
}

func (o options) file(name string, in io.Reader, notes io.Writer) (text []byte, complete bool, err error) {
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, false, err
		}
		defer file.Close()
		in = file
	}
	limited := &io.LimitedReader{R: in, N: maxFile + 1}
	reader := kyaml.NewYAMLReader(bufio.NewReader(limited))
	complete = true
	for {
		document, err := reader.Read()
		if limited.N <= 0 {
			return nil, false, fmt.Errorf("more than %d bytes", maxFile)
		}
		if errors.Is(err, io.EOF) {
			return text, complete, nil
		}
		if err != nil {
			return nil, false, err
		}
		objects, err := convert.Split(document)
		if err != nil {
			return nil, false, err
		}
		for _, object := range objects {
			made, problems, err := convert.Convert(object, convert.Options{GridKey: o.key})
			if err != nil {
				return nil, false, err
			}
			for _, p := range problems {
				complete = complete && !p.Lost
				fmt.Fprintf(notes, "%s: %s: %s\n", name, convert.Describe(object), p)
			}
			if made == nil {
				continue
			}
			encoded, err := yaml.Marshal(made)
			if err != nil {
				return nil, false, err
			}
			text = append(append(text, "---\n"...), encoded...)
		}
	}
}
