package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	kubeadmimages "k8s.io/kubernetes/cmd/kubeadm/app/images"
	kubeadmutil "k8s.io/kubernetes/cmd/kubeadm/app/util"
	utilruntime "k8s.io/kubernetes/cmd/kubeadm/app/util/runtime"

	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/images"
)

// importTimeout bounds the import of all archives.
const importTimeout = 15 * time.Minute

// visibleTimeout bounds how long the CRI may take to see imported images; it
// learns of them from containerd's events.
const visibleTimeout = 15 * time.Second

// NewImagesPhase imports the image archives that the release brought.
func NewImagesPhase(args string) workflow.Phase {
	return workflow.Phase{
		Name:         "images" + args,
		Short:        "Import the release's container images",
		Long:         "Import the OCI archives of the images folder (" + images.DefaultDir + ") into containerd, those of the control plane on its own nodes only, and say which images will have to be pulled.",
		InheritFlags: discoveryFlags,
		Run:          runImages,
	}
}

func runImages(c workflow.RunData) error {
	data, err := dataOf[NodeData]("images", c)
	if err != nil {
		return err
	}
	cluster, err := data.Cluster()
	if err != nil {
		return err
	}
	archives, err := images.ReadDir(data.ImagesDir())
	if err != nil {
		return err
	}
	var skip []string
	if !data.HostsControlPlane() {
		skip = controlPlaneComponents()
	}
	archives = images.Select(archives, skip)
	wanted := wantedImages(cluster, data.HostsControlPlane())
	socket := data.Registration().CRISocket
	if data.DryRun() {
		for _, archive := range archives {
			say(data, "images", "Would import %s (%s)", archive.Path, strings.Join(archive.Names(), ", "))
		}
		return nil
	}
	if len(archives) > 0 && !strings.Contains(socket, "containerd") {
		say(data, "images", "The container runtime at %s is not containerd: nothing imported, images will be pulled", socket)
		return nil
	}
	if len(archives) > 0 {
		if err := importArchives(data, socket, archives); err != nil {
			return err
		}
	}
	return reportMissing(data, socket, wanted, images.Missing(wanted, archives))
}

// controlPlaneComponents are the images that only control-plane nodes run.
func controlPlaneComponents() []string {
	return append(slices.Clone(kubeadmconstants.ControlPlaneComponents), kubeadmconstants.Etcd, controllerManager)
}

// controllerManager is what runs beside the control plane.
const controllerManager = "skerry-controller-manager"

// controllerManagerImage is its image in a cluster of this version.
func controllerManagerImage(cluster *kubeadmapi.ClusterConfiguration) string {
	return "skerry.dev/" + controllerManager + ":" + kubeadmutil.KubernetesVersionToImageTag(cluster.KubernetesVersion)
}

// wantedImages are the images that the cluster needs on this node.
func wantedImages(cluster *kubeadmapi.ClusterConfiguration, controlPlane bool) []string {
	all := append(kubeadmimages.GetControlPlaneImages(cluster), controllerManagerImage(cluster))
	if controlPlane {
		return all
	}
	return slices.DeleteFunc(all, func(name string) bool {
		return slices.Contains(controlPlaneComponents(), images.Component(name))
	})
}

func importArchives(data NodeData, socket string, archives []images.Archive) error {
	store, err := images.Open(socket, runtimeTimeout)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), importTimeout)
	defer cancel()
	start := time.Now()
	var mutex sync.Mutex
	imported := 0
	err = store.Import(ctx, archives, func(archive images.Archive, took time.Duration) {
		mutex.Lock()
		defer mutex.Unlock()
		if took > 0 {
			imported++
			say(data, "images", "Imported %s in %.1f s", filepath.Base(archive.Path), took.Seconds())
		}
	})
	if err != nil {
		return err
	}
	if imported > 0 {
		if err := syncFolder(host.ContainerdRoot); err != nil {
			return err
		}
	}
	say(data, "images", "%d of %d archives imported in %.1f s, the others were there", imported, len(archives), time.Since(start).Seconds())
	return nil
}

// syncFolder brings what was imported to the disk: an image that a power cut
// tore looks as if it were there.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a containerd of the user's, with another root
	}
	if err != nil {
		return fmt.Errorf("bringing images to the disk: %w", err)
	}
	defer folder.Close()
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return fmt.Errorf("bringing images to the disk: %w", err)
	}
	return nil
}

// reportMissing waits until the runtime sees the images that were imported, so
// that nothing tries to pull them, and names those that will be pulled.
func reportMissing(data NodeData, socket string, wanted, notImported []string) error {
	runtime := utilruntime.NewContainerRuntime(socket)
	if err := runtime.Connect(); err != nil {
		return fmt.Errorf("asking the container runtime for its images: %w", err)
	}
	defer runtime.Close(context.Background())
	for _, name := range wanted {
		if slices.Contains(notImported, name) {
			if !runtime.ImageExists(name) {
				say(data, "images", "%s is neither here nor in %s: it will be pulled", name, data.ImagesDir())
			}
			continue
		}
		if err := until(visibleTimeout, func(context.Context) (bool, error) { return runtime.ImageExists(name), nil }); err != nil {
			return fmt.Errorf("containerd imported %s, but its CRI plugin does not list it %w", name, err)
		}
	}
	return nil
}
