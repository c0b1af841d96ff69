package controlplane

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/pkiutil"
)

// User makes a certificate of a user of these groups, and returns what the user
// connects with.
func (c *ControlPlane) User(name string, groups ...string) (*rest.Config, error) {
	cert, private, err := c.sign(certutil.Config{CommonName: name, Organization: groups})
	if err != nil {
		return nil, err
	}
	key, err := keyutil.MarshalPrivateKeyToPEM(private)
	return &rest.Config{
		Host: "https://" + c.Address, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: pkiutil.EncodeCertPEM(c.ca), CertData: pkiutil.EncodeCertPEM(cert), KeyData: key},
	}, err
}

// WriteKubeconfig writes the file of a client with a certificate or a token.
func WriteKubeconfig(path string, r *rest.Config) error {
	config := clientcmdapi.NewConfig()
	config.CurrentContext = "a"
	config.Contexts["a"] = &clientcmdapi.Context{Cluster: "a", AuthInfo: "a"}
	config.Clusters["a"] = &clientcmdapi.Cluster{Server: r.Host, TLSServerName: r.ServerName, CertificateAuthorityData: r.CAData}
	config.AuthInfos["a"] = &clientcmdapi.AuthInfo{ClientCertificateData: r.CertData, ClientKeyData: r.KeyData, Token: r.BearerToken}
	return clientcmd.WriteToFile(*config, path)
}

// certificates makes the authority, the server's and the administrator's.
func (c *ControlPlane) certificates() (err error) {
	c.ca, c.caKey, err = pkiutil.NewCertificateAuthority(ecdsa(certutil.Config{CommonName: "kubernetes"}))
	if err != nil {
		return err
	}
	cert, key, err := c.sign(certutil.Config{CommonName: "kube-apiserver", AltNames: certutil.AltNames{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}})
	if err != nil {
		return err
	}
	if c.admin, err = c.User("admin", "system:masters"); err != nil {
		return err
	}
	return errors.Join(pkiutil.WriteCert(c.o.Dir, "ca", c.ca), pkiutil.WriteCertAndKey(c.o.Dir, "server", cert, key), WriteKubeconfig(c.Kubeconfig(), c.admin))
}

func (c *ControlPlane) sign(config certutil.Config) (*x509.Certificate, crypto.Signer, error) {
	config.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	return pkiutil.NewCertAndKey(c.ca, c.caKey, ecdsa(config))
}

// ecdsa: RSA keys take long to make.
func ecdsa(config certutil.Config) *pkiutil.CertConfig {
	return &pkiutil.CertConfig{Config: config, EncryptionAlgorithm: kubeadmapi.EncryptionAlgorithmECDSAP256}
}
