//! What `serve` needs to know: a TOML file, with flags over it, with defaults below.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use ringway_core::control::check_host_nqn;
use ringway_core::target::unix::SocketAccess;
use ringway_core::target::{PoolSpec, TlsFiles};
use serde::Deserialize;

use crate::endpoint::{ControlListen, Listen, PoolPlace};
use crate::failure::Failure;
use crate::runtime::{group_id, parse_mode};
use crate::size::Size;

/// Listeners where none is given: NVMe, discovery, and what an `openvstorage` client dials.
pub(crate) const PORTS_DEFAULT: [u16; 3] = [4420, 8009, 21321];
/// The pool where none is given.
pub(crate) const POOL_DEFAULT: &str = "ringway-data";

/// Settings of the daemon, each of them optional, as flags and as keys of the configuration file.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Pool to serve: a directory, a block device, mem:SIZE, or null:SIZE [default: ./ringway-data]
    #[arg(long, value_name = "DIR|DEVICE|mem:SIZE|null:SIZE")]
    pub(crate) pool: Option<PoolPlace>,
    /// Size of a pool that is formatted on first use [default: 4 GiB, or half of the free space if that is less]
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool_size: Option<Size>,
    /// Cores for the reactors, such as 0,2-3 [default: all allowed ones]
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<String>,
    /// Listen here; may be repeated; port 0 picks one [default: loopback, ports 4420, 8009 and 21321]
    #[arg(long, value_name = "tcp://ADDR:PORT")]
    pub(crate) listen: Option<Vec<Listen>>,
    /// Registered buffers of each reactor [default: 64 MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) buffers: Option<Size>,
    /// Memory for maps, all shards together [default: 256 MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) map_cache: Option<Size>,
    /// Microseconds that an idle reactor polls before it sleeps
    #[arg(long, value_name = "N")]
    pub(crate) polling_us: Option<u64>,
    /// After this machine has failed, each host's flushes fail for so many milliseconds from its first on, so that it learns that writes which
    /// it has not flushed may be lost; 0: it is not told [default: 1000]
    #[arg(long, value_name = "N")]
    pub(crate) lost_writes_notice_ms: Option<u64>,
    /// Let any host attach from beyond loopback, even to volumes without a list of hosts
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub(crate) insecure: Option<bool>,
    /// Control socket [default: control.sock in the runtime folder]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Runtime folder [default: $RINGWAY_RUNTIME_DIR, /run/ringway as root, or $XDG_RUNTIME_DIR/ringway]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime: Option<PathBuf>,
    /// Folder of the log that survives this process, for where /dev/shm does not [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    pub(crate) crash_log: Option<PathBuf>,
    /// Listen for control from other machines here; may be repeated; wants --tls-cert and --control-token-file
    #[arg(long, value_name = "https://ADDR:PORT")]
    pub(crate) control_listen: Option<Vec<ControlListen>>,
    /// Host NQN that may control the target by vendor-specific admin commands over NVMe; may be repeated [default: none]
    #[arg(long, value_name = "NQN")]
    pub(crate) control_host: Option<Vec<String>>,
    /// File with the token that control from other machines has to have, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    pub(crate) control_token_file: Option<PathBuf>,
    /// Certificate of this target, with those between it and its authority, PEM; NBD clients may then use TLS
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Let in only NBD clients with a certificate that one of these signed, PEM [default: clients need none]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// File with the credentials of the pool's backend, lines such as aws_access_key_id=… [default: the environment]
    #[arg(long, value_name = "FILE")]
    pub(crate) backend_credentials: Option<PathBuf>,
    /// Where the pool's snapshots are stored, as `ringway backend set` takes it [default: as the pool has it on record]
    #[arg(long, value_name = "URL|none")]
    pub(crate) backend: Option<String>,
    /// Permissions of the sockets in the runtime folder and of exports, octal [default: 0600]
    #[arg(long, value_name = "MODE")]
    pub(crate) socket_mode: Option<String>,
    /// Group of these sockets
    #[arg(long, value_name = "GROUP")]
    pub(crate) socket_group: Option<String>,
    /// Permissions of the control socket, where they are others: whoever may connect there may do everything
    #[arg(long, value_name = "MODE")]
    pub(crate) control_mode: Option<String>,
    /// What to log: error, warn, info, debug, trace, or directives such as info,ringway_core::journal=debug
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

impl Settings {
    /// Reads a configuration file. Errors name the line and what is known there.
    pub(crate) fn read(path: &Path) -> Result<Settings, Failure> {
        let text =
            fs::read_to_string(path).map_err(|error| Failure::io("read the configuration file", path, &error))?;
        let mut settings: Settings = toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("configuration file {}: {}", path.display(), error.to_string().trim_end()))
        })?;
        // Paths in a file mean the same wherever the daemon is started.
        let base = path.parent().unwrap_or(Path::new(""));
        let places = [
            &mut settings.control,
            &mut settings.runtime,
            &mut settings.crash_log,
            &mut settings.backend_credentials,
            &mut settings.control_token_file,
            &mut settings.tls_cert,
            &mut settings.tls_key,
            &mut settings.tls_client_ca,
        ];
        for place in places.into_iter().flatten() {
            *place = base.join(&place);
        }
        if let Some(PoolPlace(PoolSpec::Path(place))) = &mut settings.pool {
            *place = base.join(&place);
        }
        Ok(settings)
    }

    /// These settings with `over` winning where it says something.
    pub(crate) fn overridden_by(self, over: Settings) -> Settings {
        Settings {
            pool: over.pool.or(self.pool),
            pool_size: over.pool_size.or(self.pool_size),
            cores: over.cores.or(self.cores),
            listen: over.listen.or(self.listen),
            buffers: over.buffers.or(self.buffers),
            map_cache: over.map_cache.or(self.map_cache),
            polling_us: over.polling_us.or(self.polling_us),
            lost_writes_notice_ms: over.lost_writes_notice_ms.or(self.lost_writes_notice_ms),
            insecure: over.insecure.or(self.insecure),
            control: over.control.or(self.control),
            runtime: over.runtime.or(self.runtime),
            crash_log: over.crash_log.or(self.crash_log),
            control_listen: over.control_listen.or(self.control_listen),
            control_host: over.control_host.or(self.control_host),
            control_token_file: over.control_token_file.or(self.control_token_file),
            tls_cert: over.tls_cert.or(self.tls_cert),
            tls_key: over.tls_key.or(self.tls_key),
            backend_credentials: over.backend_credentials.or(self.backend_credentials),
            backend: over.backend.or(self.backend),
            tls_client_ca: over.tls_client_ca.or(self.tls_client_ca),
            socket_mode: over.socket_mode.or(self.socket_mode),
            socket_group: over.socket_group.or(self.socket_group),
            control_mode: over.control_mode.or(self.control_mode),
            log: over.log.or(self.log),
        }
    }

    /// Where to listen.
    pub(crate) fn listeners(&self) -> Vec<Listen> {
        match &self.listen {
            Some(given) if !given.is_empty() => given.clone(),
            _ => PORTS_DEFAULT
                .iter()
                .map(|port| format!("tcp://127.0.0.1:{port}").parse().expect("a loopback address is one"))
                .collect(),
        }
    }

    /// The pool to serve.
    pub(crate) fn pool(&self) -> PoolPlace {
        self.pool.clone().unwrap_or_else(|| PoolPlace(PoolSpec::Path(POOL_DEFAULT.into())))
    }

    /// Who may use the sockets of volumes.
    pub(crate) fn socket_access(&self) -> Result<SocketAccess, Failure> {
        let default = SocketAccess::default();
        let mode = self.socket_mode.as_deref().map(parse_mode).transpose().map_err(Failure::usage)?;
        let group = self.socket_group.as_deref().map(group_id).transpose()?;
        Ok(SocketAccess { mode: mode.unwrap_or(default.mode), group })
    }

    /// The target's certificate, if it has one.
    pub(crate) fn tls(&self) -> Result<Option<TlsFiles>, Failure> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authority: self.tls_client_ca.clone(),
            })),
            (None, None) if self.tls_client_ca.is_none() => Ok(None),
            _ => Err(Failure::usage("a certificate needs its key: give tls-cert and tls-key together")),
        }
    }

    /// Hosts that may control the target over NVMe.
    pub(crate) fn control_hosts(&self) -> Result<Vec<String>, Failure> {
        let hosts = self.control_host.clone().unwrap_or_default();
        hosts.iter().try_for_each(|nqn| check_host_nqn(nqn))?;
        Ok(hosts)
    }

    /// Where other machines may control the target, with what that needs.
    pub(crate) fn remote_control(&self) -> Result<Option<(Vec<ControlListen>, TlsFiles, PathBuf)>, Failure> {
        let Some(listen) = self.control_listen.clone().filter(|listen| !listen.is_empty()) else { return Ok(None) };
        match (self.tls()?, self.control_token_file.clone()) {
            // Who has the token needs no certificate.
            (Some(tls), Some(token)) => Ok(Some((listen, TlsFiles { client_authority: None, ..tls }, token))),
            _ => Err(Failure::usage(
                "control from other machines needs a certificate (tls-cert and tls-key) and a token \
                 (control-token-file): whoever gets in may do everything",
            )),
        }
    }

    /// Who may use the control socket.
    pub(crate) fn control_access(&self) -> Result<SocketAccess, Failure> {
        let mode = self.control_mode.as_deref().map(parse_mode).transpose().map_err(Failure::usage)?;
        let access = self.socket_access()?;
        Ok(SocketAccess { mode: mode.unwrap_or(access.mode), ..access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ringway.toml");
        fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file =
            read("pool = \"mem:1GiB\"\ncores = \"0\"\nlisten = [\"tcp://127.0.0.1:1\"]\nsocket-mode = \"0660\"\n")
                .unwrap();
        let flags = Settings { cores: Some("1".into()), ..Settings::default() };
        let settings = file.overridden_by(flags);
        assert_eq!(settings.cores.as_deref(), Some("1"));
        assert_eq!(settings.pool(), PoolPlace(PoolSpec::Memory(1 << 30)));
        assert_eq!(settings.listeners()[0].addr.port(), 1);
        assert_eq!(settings.socket_access().unwrap().mode, 0o660);
        assert_eq!(settings.control_access().unwrap().mode, 0o660);
        let private = Settings { control_mode: Some("0600".into()), ..settings.clone() };
        assert_eq!(private.control_access().unwrap().mode, 0o600);
        assert_eq!(Settings::default().listeners().len(), 3);
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line_and_what_is_known() {
        for (text, says) in [
            ("\nlisen = []\n", "line 2"),
            ("lisen = []\n", "`listen`"),
            ("listen = [\"1.2.3.4\"]\n", "tcp://127.0.0.1:4420"),
            ("pool-size = \"1X\"\n", "1.5GiB"),
            ("pool-size = -1\n", "negative"),
            ("insecure = 1\n", "boolean"),
            ("control-listen = [\"127.0.0.1:1\"]\n", "https://10.0.0.1:4421"),
        ] {
            let failure = read(text).unwrap_err();
            assert!(failure.exit_code() == 2 && failure.message.contains(says), "{text}: {failure}");
        }
        let failure = Settings::read(Path::new("/no/such/file")).unwrap_err();
        assert_eq!(failure.exit_code(), 3);
    }

    #[test]
    fn control_from_other_machines_is_refused_without_a_certificate_or_without_a_token() {
        let listen = "control-listen = [\"https://127.0.0.1:0\"]\n";
        let (tls, token) = ("tls-cert = \"c\"\ntls-key = \"k\"\n", "control-token-file = \"t\"\n");
        for text in [listen.to_owned(), format!("{listen}{tls}"), format!("{listen}{token}")] {
            let failure = read(&text).unwrap().remote_control().unwrap_err();
            assert!(failure.exit_code() == 2 && failure.message.contains("whoever gets in"), "{text}: {failure}");
        }
        let failure = read("control-host = [\"me\"]\n").unwrap().control_hosts().unwrap_err();
        assert!(failure.exit_code() == 2 && failure.message.contains("nqn.2014-08"), "{failure}");
        assert!(read("tls-cert = \"c\"\n").unwrap().tls().unwrap_err().message.contains("its key"));
        assert_eq!(read(&format!("{tls}{token}")).unwrap().remote_control().unwrap(), None);
        let (listen, tls, token) = read(&format!("{listen}{tls}{token}")).unwrap().remote_control().unwrap().unwrap();
        assert!(listen[0].addr.ip().is_loopback() && tls.key.ends_with("k") && token.ends_with("t"));
    }

    #[test]
    fn paths_of_a_file_start_at_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ringway.toml");
        fs::write(&path, "pool = \"data\"\nruntime = \"/abs\"\n").unwrap();
        let settings = Settings::read(&path).unwrap();
        assert_eq!(settings.pool, Some(PoolPlace(PoolSpec::Path(dir.path().join("data")))));
        assert_eq!(settings.runtime.as_deref(), Some(Path::new("/abs")));
    }
}
