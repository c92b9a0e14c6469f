//! The two ways to the image lead to the same one: the archive, and the Dockerfile with what `--rootfs` writes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    archive::{self, Image},
    rootfs::{PROGRAMS_DIR, Rootfs},
};

/// Everything below a folder: mode, and content or target.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(dir).unwrap().to_owned();
            found.insert(name, (metadata.permissions().mode(), content));
        }
    }
    found
}

#[test]
fn the_layer_has_the_files_of_the_folder() {
    let dir = std::env::temp_dir().join(format!("coil-same-{}", std::process::id()));
    let (written, unpacked) = (dir.join("written"), dir.join("unpacked"));
    [&written, &unpacked].into_iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    let mut rootfs = Rootfs::new();
    rootfs.file(Path::new(PROGRAMS_DIR).join("coild"), b"a program".to_vec(), 0o755);
    rootfs.write(&written).unwrap();
    let layer = archive::layer(&rootfs).unwrap();
    tar::Archive::new(&*layer).unpack(&unpacked).unwrap();
    let (written, unpacked) = (files(&written), files(&unpacked));
    fs::remove_dir_all(&dir).unwrap();
    assert!(written.contains_key(&Path::new(PROGRAMS_DIR).join("coild")), "{:?}", written.keys());
    assert_eq!(written, unpacked);
}

/// Its last stage has nothing but these files, and says of them what the archive's configuration does.
#[test]
fn the_dockerfile_says_what_the_archive_says() {
    let text = fs::read_to_string(crate::run::root().join("Dockerfile")).unwrap();
    let (build, last) = text.split_once("FROM scratch\n").expect("the image begins with nothing");
    let (_, folder) = build.split_once("\nRUN cargo xtask image --rootfs ").expect("the folder is written");
    let image = Image { tag: "coil:dev", architecture: "amd64", path: PROGRAMS_DIR };
    let mut said = json!({});
    let mut copied = 0;
    for line in last.lines() {
        match line.split_once(' ').unwrap_or_default() {
            ("COPY", what) => {
                assert_eq!(what, format!("--from=build {} /", folder.trim()));
                copied += 1;
            }
            ("ENV", variable) => said["Env"] = json!([variable]),
            _ => panic!("the archive's configuration knows nothing of {line:?}"),
        }
    }
    assert_eq!((copied, said), (1, archive::config(&image)));
}
