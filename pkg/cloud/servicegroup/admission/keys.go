package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// Names in the cluster.
const (
	// SecretName has the authority that signs the webhook's certificates, good
	// for nothing else: only the webhook's registration names it.
	SecretName = "skerry-grid-webhook"
	// ConfigurationName is that of the ValidatingWebhookConfiguration.
	ConfigurationName = "skerry.dev-grids"

	path = "/grids"

	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 30 * 24 * time.Hour
)

// keys are the webhook's: the authority, which all replicas share, and a
// certificate, which each makes for itself.
type keys struct {
	client    kubernetes.Interface
	namespace string
	host      string

	mu        sync.Mutex
	authority *tls.Certificate
	serving   *tls.Certificate
}

// ensure reads the authority, or makes it, and registers the webhook.
func (k *keys) ensure(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	authority, bundle, err := k.readAuthority(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.authority, k.serving = authority, nil
	k.mu.Unlock()
	text, err := json.Marshal(configuration(address, bundle))
	if err != nil {
		return fmt.Errorf("encoding ValidatingWebhookConfiguration %s: %w", ConfigurationName, err)
	}
	_, err = k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Patch(ctx, ConfigurationName, types.ApplyPatchType, text,
		metav1.PatchOptions{FieldManager: gridv1.FieldManager, Force: ptr.To(true)})
	if err != nil {
		return fmt.Errorf("applying ValidatingWebhookConfiguration %s: %w", ConfigurationName, err)
	}
	return nil
}

func configuration(address string, bundle []byte) *admissionv1.ValidatingWebhookConfiguration {
	return &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: ConfigurationName},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name:         "grids.skerry.dev",
			ClientConfig: admissionv1.WebhookClientConfig{URL: ptr.To("https://" + address + path), CABundle: bundle},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule:       admissionv1.Rule{APIGroups: []string{gridv1.GroupVersion.Group}, APIVersions: []string{gridv1.GroupVersion.Version}, Resources: []string{"deploymentgrids", "statefulsetgrids", "servicegrids"}},
			}},
			// Deploying must not depend on it: the controller checks as well.
			FailurePolicy: ptr.To(admissionv1.Ignore), SideEffects: ptr.To(admissionv1.SideEffectClassNone),
			MatchPolicy: ptr.To(admissionv1.Equivalent), TimeoutSeconds: ptr.To[int32](10), AdmissionReviewVersions: []string{"v1"},
		}},
	}
}

// readAuthority reads the authority from the Secret; one that is missing or near
// its end is made anew.
func (k *keys) readAuthority(ctx context.Context) (*tls.Certificate, []byte, error) {
	secrets := k.client.CoreV1().Secrets(k.namespace)
	for range 3 {
		secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, nil, fmt.Errorf("reading Secret %s/%s: %w", k.namespace, SecretName, err)
		}
		if err == nil {
			pair, bad := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
			if bad == nil && pair.Leaf.IsCA && time.Until(pair.Leaf.NotAfter) > authorityLife/10 {
				return &pair, secret.Data[corev1.TLSCertKey], nil
			}
		}
		cert, key, made := newAuthority()
		if made != nil {
			return nil, nil, made
		}
		fresh := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: SecretName}, Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
		}
		if apierrors.IsNotFound(err) {
			_, err = secrets.Create(ctx, fresh, metav1.CreateOptions{FieldManager: gridv1.FieldManager})
		} else {
			fresh.ResourceVersion = secret.ResourceVersion
			_, err = secrets.Update(ctx, fresh, metav1.UpdateOptions{FieldManager: gridv1.FieldManager})
		}
		// Another replica may have been faster: what is there counts.
		if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) {
			return nil, nil, fmt.Errorf("keeping Secret %s/%s: %w", k.namespace, SecretName, err)
		}
	}
	return nil, nil, fmt.Errorf("secret %s/%s: others change it all the time", k.namespace, SecretName)
}

func newAuthority() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "skerry-grid-webhook"}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := sign(template, authorityLife, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

func sign(template *x509.Certificate, life time.Duration, parent *x509.Certificate, public, signer any) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(life)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

// certificate is what API servers are shown.
func (k *keys) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.authority == nil {
		return nil, errors.New("the webhook has no authority yet")
	}
	if k.serving != nil && time.Until(k.serving.Leaf.NotAfter) > certificateLife/3 {
		return k.serving, nil
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: k.host}, IPAddresses: []net.IP{net.ParseIP(k.host)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := sign(template, certificateLife, k.authority.Leaf, &private.PublicKey, k.authority.PrivateKey)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading what was signed: %w", err)
	}
	k.serving = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}
	return k.serving, nil
}
