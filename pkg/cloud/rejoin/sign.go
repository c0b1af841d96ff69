package rejoin

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/util/retry"

	"skerry.dev/api"
)

const (
	// signingTime is how long the cluster's signer has.
	signingTime  = 10 * time.Second
	signingPause = 200 * time.Millisecond
)

// sign has the cluster sign a request that was judged. The signer checks the
// subject and the purpose once more.
func (a *attempt) sign(ctx context.Context, body []byte, request *x509.CertificateRequest) ([]byte, error) {
	requests := a.o.Client.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{
			Name: "rejoin-" + utilrand.String(12),
			Annotations: map[string]string{
				api.Group + "/rejoin-node":       a.identity.node,
				api.Group + "/rejoin-old-serial": a.identity.serial(),
			},
		},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    body,
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating a CertificateSigningRequest for node %s: %w", a.identity.node, err)
	}
	a.request = csr.Name
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: EventAccepted,
			Message: "The node showed the certificate that it had, serial " + a.identity.serial(),
		})
		updated, err := requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
		if err == nil {
			csr = updated
			return nil
		}
		if fresh, getErr := requests.Get(ctx, csr.Name, metav1.GetOptions{}); getErr == nil {
			csr = fresh
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("approving CertificateSigningRequest %s: %w", a.request, err)
	}
	return a.wait(ctx, request)
}

func (a *attempt) wait(ctx context.Context, request *x509.CertificateRequest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signingTime)
	defer cancel()
	for {
		csr, err := a.o.Client.CertificatesV1().CertificateSigningRequests().Get(ctx, a.request, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("waiting for CertificateSigningRequest %s: %w", a.request, err)
		}
		for _, c := range csr.Status.Conditions {
			if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
				return nil, fmt.Errorf("CertificateSigningRequest %s is %s: %s: %s", a.request, c.Type, c.Reason, c.Message)
			}
		}
		if len(csr.Status.Certificate) > 0 {
			return csr.Status.Certificate, isFor(csr.Status.Certificate, request, a.identity)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("CertificateSigningRequest %s was not signed within %s: does kube-controller-manager run?", a.request, signingTime)
		case <-time.After(signingPause):
		}
	}
}

// isFor checks that a certificate is the one that was asked for.
func isFor(chain []byte, request *x509.CertificateRequest, i *identity) error {
	block, _ := pem.Decode(chain)
	if block == nil {
		return errors.New("the cluster's signer answered with no certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("the cluster's signer answered with something else than a certificate: %w", err)
	}
	key, ok := certificate.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !key.Equal(request.PublicKey) {
		return errors.New("the cluster's signer answered with a certificate for another key")
	}
	if name, err := nodeOf(certificate.Subject); err != nil || name != i.node {
		return errors.New("the cluster's signer answered with a certificate for another subject")
	}
	return nil
}
