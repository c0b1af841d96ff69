// Package cmd holds `skerry grid`: how a grid is doing, for people who watch a
// roll-out and scripts that wait for one. It reads the grid's status; it must not
// know how the controller comes to it.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// NewGridCommand returns `skerry grid`.
func NewGridCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "grid",
		Short: "Tell how the workloads of sites are doing",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	command.AddCommand(newStatusCommand())
	return command
}

type options struct {
	watch   bool
	timeout time.Duration
}

func newStatusCommand() *cobra.Command {
	var o options
	flags := genericclioptions.NewConfigFlags(true)
	command := &cobra.Command{
		Use:   "status [dg/|ssg/]NAME",
		Short: "Tell how each site of a DeploymentGrid or StatefulSetGrid is doing",
		Long: `Tell how each site of a DeploymentGrid or StatefulSetGrid is doing.

With --watch it goes on until all sites that can be reached are ready (exit code 0) or
the roll-out has stopped, is paused or was refused (exit code 1): as a table that
changes on a terminal, else as a line for each change.`,
		Example: "  skerry grid status web -w\n  skerry grid status ssg/db -n shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := flags.ToRESTConfig()
			if err != nil {
				return fmt.Errorf("how to reach the API server: %w", err)
			}
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("making a client of the API server: %w", err)
			}
			namespace, _, err := flags.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return fmt.Errorf("finding the namespace: %w", err)
			}
			ctx := cmd.Context()
			if o.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done within --timeout=%s", o.timeout))
				defer cancel()
			}
			f := follower{client: client, namespace: namespace, out: cmd.OutOrStdout(), rows: rowsOf(cmd.OutOrStdout()), now: time.Now}
			return f.run(ctx, args[0], o.watch)
		},
		SilenceUsage: true,
	}
	command.Flags().BoolVarP(&o.watch, "watch", "w", false, "Go on until the roll-out is done or has stopped.")
	command.Flags().DurationVar(&o.timeout, "timeout", 0, "With --watch, how long to go on at most. 0: without a bound.")
	flags.AddFlags(command.Flags())
	return command
}

// rowsOf is the height of a terminal, 0 if it is none.
func rowsOf(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return max(int(size.Row), 10)
}

// resources by the names that kubectl takes for them.
var resources = map[string]string{
	"dg": "deploymentgrids", "deploymentgrid": "deploymentgrids", "deploymentgrids": "deploymentgrids",
	"ssg": "statefulsetgrids", "statefulsetgrid": "statefulsetgrids", "statefulsetgrids": "statefulsetgrids",
}

// grid is what the two kinds have in common here.
type grid struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		gridv1.WorkloadGridSpec `json:",inline"`
	} `json:"spec"`
	Status gridv1.WorkloadGridStatus `json:"status"`
}

// follower follows one grid.
type follower struct {
	client    dynamic.Interface
	namespace string
	out       io.Writer
	rows      int // of the terminal, 0 if there is none
	now       func() time.Time

	drawn int               // lines on the terminal
	said  map[string]string // per site
}

// errNotReady makes a script see that the roll-out did not succeed.
var errNotReady = errors.New("the roll-out is not done")

func (f *follower) run(ctx context.Context, argument string, follow bool) error {
	from, name, object, err := f.find(ctx, argument)
	if err != nil {
		return err
	}
	if !follow {
		g, err := read(object)
		if err != nil {
			return err
		}
		return table(f.out, g, 0)
	}
	for {
		g, err := read(object)
		if err != nil {
			return err
		}
		if done, err := f.show(g); done || err != nil {
			return err
		}
		next, err := f.next(ctx, from, object)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", errNotReady, context.Cause(ctx))
		case err != nil:
			return fmt.Errorf("watching %s: %w", name, err)
		}
		object = next
	}
}

func (f *follower) find(ctx context.Context, argument string) (dynamic.ResourceInterface, string, *unstructured.Unstructured, error) {
	kind, name, typed := strings.Cut(argument, "/")
	candidates := []string{"deploymentgrids", "statefulsetgrids"}
	if !typed {
		name = kind
	} else {
		resource := resources[strings.ToLower(kind)]
		if resource == "" {
			return nil, "", nil, fmt.Errorf("%q: there are dg and ssg", kind)
		}
		candidates = []string{resource}
	}
	for _, resource := range candidates {
		from := f.client.Resource(gridv1.GroupVersion.WithResource(resource)).Namespace(f.namespace)
		object, err := from.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return from, resource + "/" + name, object, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, "", nil, fmt.Errorf("getting %s/%s: %w", resource, name, err)
		}
	}
	return nil, "", nil, fmt.Errorf("no grid %q in namespace %s: kubectl get grids -n %s", argument, f.namespace, f.namespace)
}

// next waits for a change of the object.
func (f *follower) next(ctx context.Context, from dynamic.ResourceInterface, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	for {
		watcher, err := from.Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", object.GetName()).String(), ResourceVersion: object.GetResourceVersion(),
		})
		if err != nil {
			if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
				return nil, err
			}
			return from.Get(ctx, object.GetName(), metav1.GetOptions{})
		}
		next, err := first(ctx, watcher)
		watcher.Stop()
		if next != nil || err != nil {
			return next, err
		}
		// The watch ended, as they do. What happened meanwhile is not lost.
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if next, err := from.Get(ctx, object.GetName(), metav1.GetOptions{}); err != nil || next.GetResourceVersion() != object.GetResourceVersion() {
			return next, err
		}
	}
}

func first(ctx context.Context, watcher watch.Interface) (*unstructured.Unstructured, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case event, open := <-watcher.ResultChan():
			object, ok := event.Object.(*unstructured.Unstructured)
			switch {
			case !open || event.Type == watch.Error:
				return nil, nil
			case event.Type == watch.Deleted:
				return nil, errors.New("it was deleted")
			case ok && event.Type != watch.Bookmark:
				return object, nil
			}
		}
	}
}

func read(object *unstructured.Unstructured) (*grid, error) {
	var g grid
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &g); err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return &g, nil
}

// show shows a grid, and says whether there is nothing to wait for.
func (f *follower) show(g *grid) (done bool, err error) {
	if f.rows > 0 {
		err = f.redraw(g)
	} else {
		err = f.lines(g)
	}
	if err != nil || g.Status.ObservedGeneration != g.Generation {
		return false, err
	}
	c := meta.FindStatusCondition(g.Status.Conditions, gridv1.ConditionProgressing)
	if c == nil {
		return false, nil
	}
	switch c.Reason {
	case gridv1.ReasonStopped, gridv1.ReasonInvalid, gridv1.ReasonPaused:
		return true, fmt.Errorf("%w: %s", errNotReady, c.Message)
	case gridv1.ReasonSitesOffline, gridv1.ReasonNoSites:
		return g.Status.FailedSites == 0, nil
	case gridv1.ReasonComplete:
		for _, s := range g.Status.Sites {
			switch s.Phase {
			case gridv1.PhaseReady, gridv1.PhaseOffline, gridv1.PhaseLeaving, gridv1.PhaseRetained:
			default:
				return false, nil
			}
		}
		return true, nil
	}
	return false, nil
}
