package offline

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"
	"k8s.io/kubernetes/pkg/util/parsers"
)

// inspectTimeout bounds the question to the container runtime whether an image
// is there. It waits on the way of a pull.
const inspectTimeout = 5 * time.Second

// records stands between the kubelet's pull manager and its records, and
// remembers which images were on the node before a pull.
//
// Upstream writes an intent before each pull and removes it afterwards. An image
// that has no record of a pull was preloaded, and every pod may use it; unless
// there is an intent: then the pull may have brought it, with one pod's
// credentials, and the others have to prove theirs by a pull. So one pod whose
// pull fails again and again takes a preloaded image away from all others; and a
// kubelet that is restarted during such a pull takes the intent for a pull that
// was completed, and writes a record that nobody's credentials match, for ever.
//
// The question is whether the image was there before. So that is noted down,
// with the image's ref (its content), durably, before the first intent for a
// name is written. While an intent stands, the image with this ref counts as
// preloaded as it did before; an image with another ref came from the pull and
// is treated as upstream does. An image with a record is never noted: then the
// record says who may use it.
type records struct {
	pullmanager.PullRecordsAccessor
	images kubecontainer.ImageService
	notes  *notes

	flush   func()      // all file systems
	syncing atomic.Bool // one waits to begin
	oneSync sync.Mutex
}

var _ pullmanager.PreloadedImages = &records{}

// newRecords also settles the intents that an interrupted kubelet left behind,
// as far as they are about images that were there before. Whatever it cannot
// find out stays as upstream has it.
func newRecords(ctx context.Context, inner pullmanager.PullRecordsAccessor, images kubecontainer.ImageService, dir string) pullmanager.PullRecordsAccessor {
	logger := klog.FromContext(ctx)
	known, err := loadNotes(dir)
	if err != nil {
		logger.Error(err, "Skerry: images that were there before a pull cannot be remembered")
		return inner
	}
	r := &records{PullRecordsAccessor: inner, images: images, notes: known, flush: unix.Sync}
	r.settle(ctx)
	return r
}

func (r *records) settle(ctx context.Context) {
	logger := klog.FromContext(ctx)
	for image, noted := range r.notes.all() {
		if r.intended(image) {
			present, known := r.present(logger, image)
			if !known {
				continue // the runtime does not answer: the note still holds
			}
			if present == noted {
				if err := r.DeleteImagePullIntent(logger, image); err != nil {
					logger.Error(err, "Skerry: removing the intent of an interrupted pull", "image", image)
					continue
				}
				logger.Info("Skerry: a pull was interrupted; the image was there before it and is unchanged", "image", image, "imageRef", noted)
			}
		}
		if err := r.notes.drop(image); err != nil {
			logger.Error(err, "Skerry: forgetting an image that was there before a pull", "image", image)
		}
	}
}

// intended says whether an intent stands. One that cannot be read does: upstream
// does not sync its files, so a power cut in the middle of a pull leaves empty
// ones. The note was on disk before it.
func (r *records) intended(image string) bool {
	exists, err := r.ImagePullIntentExists(image)
	return exists || err != nil
}

// WriteImagePullIntent is called before each pull, under a lock for the image.
// Only the first of several pulls looks: what is there later may have come from
// the first.
func (r *records) WriteImagePullIntent(logger klog.Logger, image string) error {
	if !r.intended(image) {
		ref, _ := r.present(logger, image)
		if err := r.notes.set(image, ref); err != nil {
			// A wrong note must not stand beside an intent: no pull then.
			return err
		}
	}
	return r.PullRecordsAccessor.WriteImagePullIntent(logger, image)
}

// WriteImagePulledRecord also has the record written to the disk, soon. Upstream
// leaves that to the kernel, which takes half a minute: after a power cut the
// record is an empty file, which demands a pull. What was unpacked of the image
// gets to the disk with it. The container that waits for the image does not wait
// for that.
func (r *records) WriteImagePulledRecord(logger klog.Logger, record *kubeletconfig.ImagePulledRecord) error {
	if err := r.PullRecordsAccessor.WriteImagePulledRecord(logger, record); err != nil {
		return err
	}
	if r.syncing.CompareAndSwap(false, true) {
		go func() {
			r.oneSync.Lock() // one runs, one waits, whatever is pulled
			defer r.oneSync.Unlock()
			r.syncing.Store(false) // a record that is written from now on is for the next one
			r.flush()
		}()
	}
	return nil
}

// PresentBeforePull says whether the image was there, preloaded, before the
// first pull whose intent still stands.
func (r *records) PresentBeforePull(image, imageRef string) bool {
	return imageRef != "" && r.notes.get(image) == imageRef
}

// present returns the ref of the image on the node, or "" if it is not there or
// has a record of a pull; and whether that could be found out.
func (r *records) present(logger klog.Logger, image string) (ref string, known bool) {
	ctx, cancel := context.WithTimeout(klog.NewContext(context.Background(), logger), inspectTimeout)
	defer cancel()
	ref, err := r.images.GetImageRef(ctx, kubecontainer.ImageSpec{Image: withTag(image)})
	if err != nil {
		logger.Error(err, "Skerry: looking for an image before its pull", "image", image)
		return "", false
	}
	if ref == "" {
		return "", true
	}
	record, exists, err := r.GetImagePulledRecord(ref)
	if err != nil || exists || record != nil {
		return "", true
	}
	return ref, true
}

// withTag adds the default tag, as the image manager does before it asks the
// runtime; intents are filed under the name in the pod.
func withTag(image string) string {
	_, tag, digest, err := parsers.ParseImageName(image)
	if err == nil && digest == "" && tag != "" && !strings.HasSuffix(image, ":"+tag) {
		return image + ":" + tag
	}
	return image
}
