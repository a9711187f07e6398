//! Where the backend is: its URL, who we are there, and the store behind it.
//!
//! ```text
//! file:///folder                                         every object fsynced, its folder too (history H12)
//! s3://bucket/prefix[?endpoint=http://host:port][&region=…]
//! ```
//!
//! Credentials are never part of the URL, which lies in the pool's catalog and is shown: they come from the environment (what every S3
//! client reads: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and their like) or from a file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{ClientOptions, RetryConfig};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::store::{Objects, RealObjects};

/// How long a connection may take to come about, and a request to be answered in full. The layer above tries again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const URL_BYTES_MAX: usize = 1000;

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BackendUrl {
    /// A folder of this machine.
    File(PathBuf),
    /// What speaks S3.
    S3 {
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
        /// Other than Amazon's.
        endpoint: Option<String>,
        region: Option<String>,
    },
}

/// Why a URL is none of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{url:?} is no backend: {why}; a backend is file:///FOLDER or s3://BUCKET[/PREFIX][?endpoint=http://HOST:PORT&region=REGION]"
)]
pub struct BadUrl {
    url: String,
    why: &'static str,
}

impl FromStr for BackendUrl {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        let bad = |why| BadUrl { url: url.to_owned(), why };
        if url.len() > URL_BYTES_MAX || url.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return Err(bad("it is too long or has blanks in it"));
        }
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(bad("a folder is named from the root, as file:///var/backup"));
            }
            if Path::new(path).components().any(|part| matches!(part, std::path::Component::ParentDir)) {
                return Err(bad("a folder's path has no .. in it"));
            }
            return Ok(BackendUrl::File(PathBuf::from(path)));
        }
        let rest = url.strip_prefix("s3://").ok_or_else(|| bad("it begins with neither file:// nor s3://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if place.contains('@') {
            return Err(bad("credentials do not belong into a URL that others see: use the environment or a file"));
        }
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(legal) {
            return Err(bad("a bucket's name has 3 to 63 characters of a-z 0-9 - ."));
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
            || prefix.split('/').any(|part| part == "..")
        {
            return Err(bad("a prefix has characters of A-Z a-z 0-9 . _ - /"));
        }
        let (mut endpoint, mut region) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("endpoint", value)) if value.starts_with("http://") || value.starts_with("https://") => {
                    endpoint = Some(value.trim_end_matches('/').to_owned());
                }
                Some(("endpoint", _)) => return Err(bad("an endpoint begins with http:// or https://")),
                Some(("region", value)) if !value.is_empty() => region = Some(value.to_owned()),
                _ => return Err(bad("what can be said behind the question mark is endpoint= and region=")),
            }
        }
        Ok(BackendUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned(), endpoint, region })
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendUrl::File(path) => write!(f, "file://{}", path.display()),
            BackendUrl::S3 { bucket, prefix, endpoint, region } => {
                write!(f, "s3://{bucket}")?;
                if !prefix.is_empty() {
                    write!(f, "/{prefix}")?;
                }
                let mut mark = '?';
                for (key, value) in [("endpoint", endpoint), ("region", region)] {
                    if let Some(value) = value {
                        write!(f, "{mark}{key}={value}")?;
                        mark = '&';
                    }
                }
                Ok(())
            }
        }
    }
}

impl TryFrom<String> for BackendUrl {
    type Error = BadUrl;

    fn try_from(url: String) -> Result<Self, BadUrl> {
        url.parse()
    }
}

impl From<BackendUrl> for String {
    fn from(url: BackendUrl) -> String {
        url.to_string()
    }
}

/// Why a backend cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenBackendError {
    /// The folder is not there. It is not made: where a disk is not mounted, it would be made on another.
    #[error("the backend's folder {0} is not there; make it, or mount what it lies on")]
    NoFolder(String),
    /// The file with the credentials.
    #[error("cannot read credentials from {path}: {why}")]
    Credentials { path: PathBuf, why: String },
    /// What the store's own settings say.
    #[error("cannot use the backend {url}: {why}")]
    Refused { url: String, why: String },
}

impl BackendUrl {
    /// Opens it; no connection is made yet. `credentials` is a file with lines `KEY=VALUE`, as `aws_access_key_id=…`.
    pub fn open(&self, credentials: Option<&Path>) -> Result<Arc<dyn Objects>, OpenBackendError> {
        let refused =
            |error: object_store::Error| OpenBackendError::Refused { url: self.to_string(), why: error.to_string() };
        match self {
            BackendUrl::File(path) => {
                if !path.is_dir() {
                    return Err(OpenBackendError::NoFolder(path.display().to_string()));
                }
                let store = LocalFileSystem::new_with_prefix(path).map_err(refused)?.with_fsync(true);
                let none = object_store::path::Path::default();
                Ok(Arc::new(RealObjects::new(Arc::new(store), none, self.to_string())))
            }
            BackendUrl::S3 { bucket, prefix, endpoint, region } => {
                // The provider is chosen once in a process; a second choice of the same changes nothing.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(
                        ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT),
                    )
                    // Tries again above, where an attempt can be called off and its trouble told.
                    .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
                if let Some(path) = credentials {
                    builder = with_credentials(builder, path)?;
                }
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
                }
                if let Some(region) = region {
                    builder = builder.with_region(region);
                }
                let store = builder.build().map_err(refused)?;
                let prefix = object_store::path::Path::from(prefix.as_str());
                let label = format!("s3://{bucket}/{prefix}").trim_end_matches('/').to_owned();
                Ok(Arc::new(RealObjects::new(Arc::new(store), prefix, label)))
            }
        }
    }

    /// Removes what a killed process left of unfinished puts in the folders of this pool: files that no listing shows. Nobody else
    /// writes there.
    pub fn sweep(&self, pool: uuid::Uuid) {
        let BackendUrl::File(path) = self else { return };
        for kind in ["manifests", "markers", "tombstones", "packs", "maps"] {
            let folder = path.join(pool.simple().to_string()).join(kind);
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let unfinished = name
                    .to_str()
                    .and_then(|name| name.rsplit_once('#'))
                    .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
                if unfinished && let Err(error) = std::fs::remove_file(entry.path()) {
                    tracing::warn!(file = %entry.path().display(), %error, "cannot remove what is left of an unfinished put");
                }
            }
        }
    }
}

fn with_credentials(mut builder: AmazonS3Builder, path: &Path) -> Result<AmazonS3Builder, OpenBackendError> {
    let bad = |why: String| OpenBackendError::Credentials { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let mut keys = 0;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        // Section headers as in ~/.aws/credentials are let pass; a file with several profiles is not.
        if line.is_empty() || line.starts_with('#') || line.starts_with('[') {
            continue;
        }
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| bad(format!("line {} is not KEY=VALUE, as aws_access_key_id=…", number + 1)))?;
        let key = key.trim().to_ascii_lowercase();
        let known: AmazonS3ConfigKey =
            key.parse().map_err(|_| bad(format!("line {}: {key} is no setting of an S3 client", number + 1)))?;
        if matches!(known, AmazonS3ConfigKey::AccessKeyId) {
            keys += 1;
        }
        builder = builder.with_config(known, value.trim());
    }
    if keys != 1 {
        return Err(bad("it has to name aws_access_key_id (and aws_secret_access_key) exactly once".to_owned()));
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_written_as_it_is_read() {
        for url in [
            "file:///var/backup",
            "s3://bucket",
            "s3://bucket/a/b",
            "s3://bucket/a?endpoint=http://127.0.0.1:9000&region=eu-1",
            "s3://my.bucket-1?region=x",
        ] {
            assert_eq!(url.parse::<BackendUrl>().unwrap().to_string(), url);
        }
        assert_eq!("s3://bucket//a/".parse::<BackendUrl>().unwrap().to_string(), "s3://bucket/a");
    }

    #[test]
    fn what_is_no_backend_is_refused_with_what_would_be_one() {
        for (url, why) in [
            ("", "neither file:// nor s3://"),
            ("/var/backup", "neither"),
            ("file://backup", "from the root"),
            ("file:///a/../b", "no .."),
            ("s3://", "3 to 63"),
            ("s3://B", "3 to 63"),
            ("s3://bucket/a b", "blanks"),
            ("s3://bucket/ä", "A-Z"),
            ("s3://bucket/../x", "A-Z"),
            ("s3://bucket?endpoint=host", "http://"),
            ("s3://bucket?key=1", "endpoint= and region="),
            ("s3://me:secret@bucket", "credentials do not belong"),
        ] {
            let error = url.parse::<BackendUrl>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("file:///FOLDER"), "{url}: {error}");
        }
    }

    #[test]
    fn h12_a_folder_is_a_backend_only_with_every_object_fsynced() {
        let folder = tempfile::tempdir().unwrap();
        let store = BackendUrl::File(folder.path().to_owned()).open(None).unwrap();
        assert!(format!("{store:?}").contains("fsync: true"), "{store:?}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let url = BackendUrl::File(folder.path().join("missing"));
        assert!(matches!(url.open(None), Err(OpenBackendError::NoFolder(_))));
        assert!(!folder.path().join("missing").exists());
    }

    #[test]
    fn what_a_killed_put_left_is_swept_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let pool = uuid::Uuid::from_u128(5);
        let packs = folder.path().join(pool.simple().to_string()).join("packs");
        std::fs::create_dir_all(&packs).unwrap();
        for name in ["a#1", "b", "c#x", "d#"] {
            std::fs::write(packs.join(name), b"x").unwrap();
        }
        BackendUrl::File(folder.path().to_owned()).sweep(pool);
        let mut left: Vec<_> = std::fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b", "c#x", "d#"]);
    }

    #[test]
    fn a_file_of_credentials_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let url: BackendUrl = "s3://bucket?endpoint=http://127.0.0.1:1".parse().unwrap();
        for (text, says) in [
            ("nonsense", "line 1 is not KEY=VALUE"),
            ("aws_colour=red", "aws_colour is no setting"),
            ("aws_secret_access_key=x", "aws_access_key_id"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = url.open(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        std::fs::write(&path, "[default]\naws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
        url.open(Some(&path)).unwrap();
        assert!(url.open(Some(&folder.path().join("none"))).is_err());
    }
}
