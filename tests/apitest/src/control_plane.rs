//! The files and command lines of an etcd with a kube-apiserver.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use coil_apiserver::{User, kubeconfig};
use ipnet::IpNet;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::Error;

/// What an etcd and a kube-apiserver are told. All their files are in one directory.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// The directory; it exists and is theirs alone.
    pub dir: PathBuf,
    /// Where etcd listens for the API server.
    pub etcd: SocketAddr,
    /// Where etcd listens for the other members that it does not have.
    pub etcd_peer: SocketAddr,
    /// Where the API server listens.
    pub address: SocketAddr,
    /// Ranges of cluster IPs, the primary family first.
    pub service_ranges: Vec<IpNet>,
    /// Names and addresses that the certificate carries besides the listening address.
    pub extra_sans: Vec<String>,
    /// Admission plugins that are turned off.
    pub without_plugins: Vec<String>,
}

/// A user and the token that stands for it.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) user: User,
    pub(crate) token: String,
}

impl ControlPlane {
    /// Writes certificates, keys and the tokens of users, and returns the PEM of the CA with
    /// the tokens, in the order of the users.
    ///
    /// # Errors
    ///
    /// When a name is none that a certificate can carry, or a file cannot be written.
    pub fn write_files(&self, users: &[User]) -> Result<(String, Vec<String>), Error> {
        let (ca, certificate, key) = self.certificate()?;
        let account_key = KeyPair::generate()?;
        self.write("ca.crt", &ca)?;
        self.write("server.crt", &certificate)?;
        self.write("server.key", &key)?;
        self.write("accounts.key", &account_key.serialize_pem())?;
        self.write("accounts.pub", &account_key.public_key_pem())?;
        let tokens: Vec<String> = users.iter().map(|_| random_token()).collect::<Result<_, _>>()?;
        let lines: String = users.iter().zip(&tokens).map(|(user, token)| token_line(user, token)).collect();
        self.write("tokens.csv", &lines)?;
        Ok((ca, tokens))
    }

    fn certificate(&self) -> Result<(String, String, String), rcgen::Error> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        ca.distinguished_name.push(DnType::CommonName, "coil-apitest-ca");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut names = vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()];
        names.extend(self.service_ranges.iter().filter_map(first_host).map(|ip| ip.to_string()));
        names.push(self.address.ip().to_string());
        names.extend(self.extra_sans.iter().cloned());
        names.dedup();
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &ca)?;
        Ok((ca.pem(), certificate.pem(), key.serialize_pem()))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        let private = || fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        fs::write(&path, text)
            .and_then(|()| private())
            .map_err(|source| Error::Write { path: path.clone(), source })
    }

    /// The arguments of etcd. It need not survive a crash of the machine.
    #[must_use]
    pub fn etcd_args(&self) -> Vec<String> {
        let (client, peer) = (format!("http://{}", self.etcd), format!("http://{}", self.etcd_peer));
        vec![
            "--name=default".into(),
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync=true".into(),
            "--log-level=warn".into(),
        ]
    }

    /// The arguments of kube-apiserver: RBAC, static tokens, Services of webhooks found by
    /// their EndpointSlices, because nothing here carries cluster IPs for it.
    #[must_use]
    pub fn api_server_args(&self) -> Vec<String> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut args = vec![
            format!("--etcd-servers=http://{}", self.etcd),
            format!("--bind-address={}", self.address.ip()),
            format!("--advertise-address={}", self.address.ip()),
            format!("--secure-port={}", self.address.port()),
            format!("--cert-dir={}", at("certs")),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("accounts.key")),
            "--authorization-mode=RBAC".into(),
            "--allow-privileged=true".into(),
            "--endpoint-reconciler-type=none".into(),
            "--enable-aggregator-routing=true".into(),
        ];
        if !self.without_plugins.is_empty() {
            args.push(format!("--disable-admission-plugins={}", self.without_plugins.join(",")));
        }
        if !self.service_ranges.is_empty() {
            let ranges: Vec<String> = self.service_ranges.iter().map(ToString::to_string).collect();
            args.push(format!("--service-cluster-ip-range={}", ranges.join(",")));
        }
        args
    }

    /// A kubeconfig of one user, reaching the API server at `url`.
    #[must_use]
    pub fn kubeconfig(&self, url: &str, user: &str, token: &str) -> String {
        let ca = fs::read_to_string(self.ca_file()).unwrap_or_default();
        kubeconfig(url, &ca, user, token)
    }

    /// The file with the PEM of the CA.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        Path::new(&self.dir).join("ca.crt")
    }
}

/// The address of the `kubernetes` Service in a range.
fn first_host(range: &IpNet) -> Option<IpAddr> {
    range.hosts().find(|ip| *ip != range.network())
}

/// A line of a static token file.
fn token_line(user: &User, token: &str) -> String {
    format!("{token},{name},{name},\"{groups}\"\n", name = user.name, groups = user.groups.join(","))
}

/// A token from the randomness that keys are made of.
fn random_token() -> Result<String, rcgen::Error> {
    let key = KeyPair::generate()?.serialize_der();
    Ok(key.iter().rev().take(20).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_line_quotes_its_groups() {
        let user = User::new("u", ["a", "b"]);
        assert_eq!(token_line(&user, "t"), "t,u,u,\"a,b\"\n");
        assert_ne!(random_token().unwrap(), random_token().unwrap());
    }

    #[test]
    fn the_first_host_is_the_kubernetes_service() {
        assert_eq!(first_host(&"10.96.0.0/16".parse().unwrap()).unwrap().to_string(), "10.96.0.1");
        assert_eq!(first_host(&"fd96::/112".parse().unwrap()).unwrap().to_string(), "fd96::1");
    }
}
