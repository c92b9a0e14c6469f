//! An image as one file: an OCI image layout, with the table of contents that `docker load` wants.
//!
//! ```text
//! oci-layout, index.json ─▶ manifest ─┬─▶ configuration
//! manifest.json (docker) ─────────────┴─▶ one layer, compressed
//! ```
//!
//! The same files give the same archive: no time and no owner is in it.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::rootfs::{Entry, Rootfs};

/// What an image says of itself.
pub(super) struct Image<'a> {
    /// `NAME:TAG`.
    pub(super) tag: &'a str,
    pub(super) architecture: &'a str,
    /// The folder of its programs, without a leading slash.
    pub(super) path: &'a str,
}

/// A file that is named by its content.
struct Blob {
    media_type: &'static str,
    content: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        let digest = hex(&content);
        Self { media_type, content, digest }
    }

    fn json(media_type: &'static str, content: &Value) -> Self {
        Self::new(media_type, content.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": format!("sha256:{}", self.digest), "size": self.content.len()})
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

/// Writes an image; a reader of the path sees the old one or the new one.
pub(super) fn write(path: &Path, image: &Image<'_>, rootfs: &Rootfs) -> Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        let mut archive = Builder::new(BufWriter::new(File::create(&new)?));
        let layer = layer(rootfs)?;
        add(&mut archive, image, &layer)?;
        archive.into_inner()?.flush()?;
        std::fs::rename(&new, path)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn add(archive: &mut Builder<impl io::Write>, image: &Image<'_>, layer: &[u8]) -> io::Result<()> {
    let diff_id = format!("sha256:{}", hex(layer));
    let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
    compressed.write_all(layer)?;
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", compressed.finish()?);
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": image.architecture,
            "os": "linux",
            "config": config(image),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }),
    );
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        }),
    );
    let mut descriptor = manifest.descriptor();
    descriptor["platform"] = json!({"architecture": image.architecture, "os": "linux"});
    let name = full_name(image.tag);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    // containerd reads the whole name, others the tag.
    descriptor["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    });
    let docker = json!([{"Config": config.path(), "RepoTags": [image.tag], "Layers": [layer.path()]}]);

    file(archive, "oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes(), 0o644)?;
    file(archive, "index.json", index.to_string().as_bytes(), 0o644)?;
    file(archive, "manifest.json", docker.to_string().as_bytes(), 0o644)?;
    for blob in [&config, &layer, &manifest] {
        file(archive, blob.path(), &blob.content, 0o644)?;
    }
    Ok(())
}

/// How its programs are run; the Dockerfile says the same.
pub(super) fn config(image: &Image<'_>) -> Value {
    json!({"Env": [format!("PATH=/{}", image.path)]})
}

/// The name as containerd keeps it: with the registry that a name without one means.
fn full_name(tag: &str) -> String {
    let has_registry = tag.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']));
    match tag.contains('/') {
        _ if has_registry => tag.to_owned(),
        true => format!("docker.io/{tag}"),
        false => format!("docker.io/library/{tag}"),
    }
}

/// The files as one tar, not compressed.
pub(super) fn layer(rootfs: &Rootfs) -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for (path, entry) in &rootfs.0 {
        match entry {
            Entry::File(content, mode) => file(&mut layer, path, content, *mode)?,
            Entry::Folder => {
                let mut header = header(EntryType::Directory, 0, 0o755);
                layer.append_data(&mut header, path, io::empty())?;
            }
            Entry::Link(target) => {
                let mut header = header(EntryType::Symlink, 0, 0o777);
                layer.append_link(&mut header, path, target)?;
            }
        }
    }
    layer.into_inner()
}

fn file(
    archive: &mut Builder<impl io::Write>,
    path: impl AsRef<Path>,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let mut header = header(EntryType::Regular, content.len() as u64, mode);
    archive.append_data(&mut header, path, content)
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use flate2::read::GzDecoder;

    use super::*;

    /// The files of an archive.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (path, content)
        });
        entries.collect()
    }

    fn build() -> Vec<u8> {
        let image = Image { tag: "coil:dev", architecture: "arm64", path: "usr/local/coil" };
        let mut archive = Builder::new(Vec::new());
        add(&mut archive, &image, &layer(&Rootfs::new()).unwrap()).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn every_digest_leads_to_its_content_by_both_ways() {
        let built = build();
        assert_eq!(built, build(), "the same files give the same archive");
        let files = files(&built);
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let path = format!("blobs/sha256/{digest}");
            assert_eq!(hex(&files[&path]), digest);
            assert_eq!(files[&path].len() as u64, descriptor["size"].as_u64().unwrap());
            path
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let named = &json("index.json")["manifests"][0];
        assert_eq!(named["annotations"]["io.containerd.image.name"], "docker.io/library/coil:dev");
        let manifest = json(&blob(named));
        let (config, layer) = (blob(&manifest["config"]), blob(&manifest["layers"][0]));
        let docker = json("manifest.json");
        assert_eq!((&docker[0]["Config"], &docker[0]["Layers"][0]), (&json!(config), &json!(layer)));
        assert_eq!(docker[0]["RepoTags"], json!(["coil:dev"]));
        let mut content = Vec::new();
        GzDecoder::new(&*files[&layer]).read_to_end(&mut content).unwrap();
        let config = json(&config);
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&content)));
        assert_eq!((&config["architecture"], &config["os"]), (&json!("arm64"), &json!("linux")));
    }

    #[test]
    fn names_with_and_without_a_registry() {
        assert_eq!(full_name("coil:dev"), "docker.io/library/coil:dev");
        assert_eq!(full_name("me/coil:dev"), "docker.io/me/coil:dev");
        assert_eq!(full_name("localhost:5000/coil:dev"), "localhost:5000/coil:dev");
        assert_eq!(full_name("registry.example/me/coil:1"), "registry.example/me/coil:1");
    }
}
