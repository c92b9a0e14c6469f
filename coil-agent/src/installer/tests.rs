use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;

const NETCONF: &str = r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"coil","socket":"/run/coild.sock"}]}"#;
const CHAINED: &str =
    r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"ptp"},{"type":"coil"}]}"#;

fn node() -> (tempfile::TempDir, Settings) {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (etc_dir, bin_dir, image) = (dir("net.d"), dir("bin"), dir("image"));
    fs::write(image.join("coil"), b"\x7fELF one").unwrap();
    let settings = Settings {
        conf_name: "10-coil.conflist".into(),
        etc_dir,
        bin_dir,
        coil_path: image.join("coil"),
        netconf: Netconf::Text(NETCONF.into()),
    };
    (root, settings)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn installs_once_and_then_changes_nothing() {
    let (_root, settings) = node();
    let plugin = settings.bin_dir.join("coil");
    let conf = settings.etc_dir.join("10-coil.conflist");
    let first = install(&settings).unwrap();
    assert_eq!(first.written, [plugin.clone(), conf.clone()]);
    assert_eq!(fs::read(&plugin).unwrap(), b"\x7fELF one");
    assert_eq!(fs::read_to_string(&conf).unwrap(), NETCONF);
    assert_eq!((mode(&plugin), mode(&conf)), (0o755, 0o644));
    assert_eq!(install(&settings).unwrap(), Installed::default());
    // A damaged mode is mended, and only that file is written.
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(install(&settings).unwrap().written, [conf]);
}

#[test]
fn a_running_plugin_is_replaced_by_rename() {
    let (_root, settings) = node();
    install(&settings).unwrap();
    let plugin = settings.bin_dir.join("coil");
    let open = fs::File::open(&plugin).unwrap();
    fs::write(&settings.coil_path, b"\x7fELF two, longer").unwrap();
    assert_eq!(install(&settings).unwrap().written, std::slice::from_ref(&plugin));
    assert_eq!(fs::read(&plugin).unwrap(), b"\x7fELF two, longer");
    assert_eq!(open.metadata().unwrap().len(), 8, "who has the old one open keeps it");
}

#[test]
fn only_coils_own_older_configuration_goes() {
    let (_root, settings) = node();
    let put = |name: &str, text: &str| fs::write(settings.etc_dir.join(name), text).unwrap();
    put("05-coil.conflist", NETCONF);
    put("20-chained.conflist", CHAINED);
    put("30-other.conflist", &NETCONF.replace("k8s-pod-network", "storage-network"));
    put("87-podman.conflist", r#"{"name":"podman","plugins":[{"type":"bridge"}]}"#);
    put("broken.conflist", "{");
    put("notes.txt", NETCONF);
    let installed = install(&settings).unwrap();
    assert_eq!(installed.removed, [settings.etc_dir.join("05-coil.conflist")]);
    assert_eq!(
        names(&settings.etc_dir),
        [
            "10-coil.conflist",
            "20-chained.conflist",
            "30-other.conflist",
            "87-podman.conflist",
            "broken.conflist",
            "notes.txt"
        ]
    );
}

#[test]
fn a_bad_configuration_changes_nothing() {
    for (netconf, expected) in [
        ("{", "is not JSON"),
        (r#"{"plugins":[{"type":"coil"}]}"#, r#"has no "name""#),
        (r#"{"name":"n","plugins":[{"type":"ptp"}]}"#, r#"has no plugin with "type": "coil""#),
    ] {
        let (_root, mut settings) = node();
        settings.netconf = Netconf::Text(netconf.into());
        let error = install(&settings).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("CNI_NETCONF"), "{error}");
        assert!(names(&settings.bin_dir).is_empty() && names(&settings.etc_dir).is_empty());
    }
}

#[test]
fn a_failed_step_leaves_the_old_state() {
    let (_root, mut settings) = node();
    install(&settings).unwrap();
    fs::write(&settings.coil_path, b"\x7fELF two").unwrap();
    // A folder cannot be replaced by a file: the rename fails after the temporary file was written.
    settings.conf_name = "20-coil.conflist".into();
    fs::create_dir(settings.etc_dir.join("20-coil.conflist")).unwrap();
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("cannot install") && error.contains("20-coil.conflist"), "{error}");
    assert_eq!(
        names(&settings.etc_dir),
        ["10-coil.conflist", "20-coil.conflist"],
        "the older one still works"
    );
    settings.bin_dir = settings.bin_dir.join("missing");
    std::os::unix::fs::symlink("/nowhere/at/all", &settings.bin_dir).unwrap();
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    settings.coil_path = "/nowhere/coil".into();
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("is the host folder mounted there?"), "{error}");
}

/// Runs code where a folder is a file system of its own, which nobody else sees. Needs root.
fn on_file_system(dir: &Path, options: &str, work: impl FnOnce() + Send) {
    use nix::{mount, mount::MsFlags, sched};
    let alone = || {
        sched::unshare(sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace, which needs root");
        mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        mount::mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        work();
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

fn make_read_only(dir: &Path) {
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn a_full_file_system_leaves_the_old_state() {
    let (_root, mut settings) = node();
    let (bin, etc) = (settings.bin_dir.clone(), settings.etc_dir.clone());
    on_file_system(&bin, "size=64k", || {
        install(&settings).unwrap();
        fs::write(&settings.coil_path, vec![b'x'; 1 << 20]).unwrap();
        let error = install(&settings).unwrap_err().to_string();
        assert!(error.contains("bin/coil") && error.contains("free some space on the node"), "{error}");
        assert_eq!(fs::read(bin.join("coil")).unwrap(), b"\x7fELF one");
        assert_eq!(names(&bin), ["coil"], "nothing half written is left");
        assert_eq!(fs::read_to_string(etc.join("10-coil.conflist")).unwrap(), NETCONF);
        fs::write(&settings.coil_path, b"\x7fELF two").unwrap();
        assert_eq!(install(&settings).unwrap().written, [bin.join("coil")], "with room it goes on");
    });
    fs::write(&settings.coil_path, b"\x7fELF one").unwrap();
    on_file_system(&etc, "size=64k", || {
        install(&settings).unwrap();
        let long = format!(r#""name": "{}", "#, "n".repeat(1 << 20));
        settings.netconf = Netconf::Text(NETCONF.replacen(r#""name":"k8s-pod-network","#, &long, 1));
        let error = install(&settings).unwrap_err().to_string();
        assert!(
            error.contains("10-coil.conflist") && error.contains("free some space on the node"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(etc.join("10-coil.conflist")).unwrap(), NETCONF);
        assert_eq!(names(&etc), ["10-coil.conflist"]);
    });
}

#[test]
fn a_read_only_file_system_leaves_the_old_state() {
    let (_root, mut settings) = node();
    let (bin, etc) = (settings.bin_dir.clone(), settings.etc_dir.clone());
    on_file_system(&bin, "size=64k", || {
        install(&settings).unwrap();
        make_read_only(&bin);
        assert_eq!(install(&settings).unwrap(), Installed::default(), "what is right needs no writing");
        fs::write(&settings.coil_path, b"\x7fELF two").unwrap();
        let error = install(&settings).unwrap_err().to_string();
        assert!(error.contains("bin/coil") && error.contains("mount the host folder writable"), "{error}");
        assert_eq!(fs::read(bin.join("coil")).unwrap(), b"\x7fELF one");
    });
    fs::write(&settings.coil_path, b"\x7fELF one").unwrap();
    on_file_system(&etc, "size=64k", || {
        install(&settings).unwrap();
        make_read_only(&etc);
        settings.conf_name = "20-coil.conflist".into();
        let error = install(&settings).unwrap_err().to_string();
        assert!(
            error.contains("20-coil.conflist") && error.contains("mount the host folder writable"),
            "{error}"
        );
        assert_eq!(names(&etc), ["10-coil.conflist"], "the older one still works");
    });
}

#[test]
fn folders_that_are_not_there_are_made() {
    let (root, mut settings) = node();
    settings.etc_dir = root.path().join("etc/cni/net.d");
    settings.bin_dir = root.path().join("opt/cni/bin");
    assert_eq!(install(&settings).unwrap().written.len(), 2);
    assert_eq!((mode(&settings.etc_dir) & 0o700, names(&settings.bin_dir)), (0o700, vec!["coil".to_owned()]));
}

#[test]
fn a_plugin_that_is_running_can_be_replaced() {
    let (_root, settings) = node();
    let plugin = settings.bin_dir.join("coil");
    fs::copy("/bin/sleep", &plugin).unwrap();
    let mut running = std::process::Command::new(&plugin).arg("60").spawn().unwrap();
    let busy = fs::OpenOptions::new().write(true).open(&plugin).unwrap_err();
    let installed = install(&settings);
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(busy.kind(), std::io::ErrorKind::ExecutableFileBusy, "it cannot be written in place");
    assert!(installed.unwrap().written.contains(&plugin));
    assert_eq!(fs::read(&plugin).unwrap(), b"\x7fELF one");
}

#[test]
fn what_a_crash_left_is_no_hindrance() {
    let (_root, settings) = node();
    fs::write(settings.bin_dir.join(".coil-new"), "half of a pl").unwrap();
    fs::write(settings.etc_dir.join(".10-coil-conflist-new"), "{").unwrap();
    install(&settings).unwrap();
    assert_eq!(fs::read(settings.bin_dir.join("coil")).unwrap(), b"\x7fELF one");
    assert_eq!((names(&settings.bin_dir).len(), names(&settings.etc_dir).len()), (1, 1));
}

#[test]
fn settings_come_from_the_environment() {
    let env = |pairs: &[(&str, &str)]| {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Settings::from_env(move |name| map.get(name).map(Into::into))
    };
    let settings = env(&[("CNI_NETCONF", NETCONF)]).unwrap();
    assert_eq!(settings.etc_dir, Path::new("/host/etc/cni/net.d"));
    assert_eq!(settings.bin_dir, Path::new("/host/opt/cni/bin"));
    assert_eq!(settings.conf_name, "10-coil.conflist");
    assert_eq!(settings.coil_path, Path::new("/usr/local/coil/coil"));
    let file = ("CNI_NETCONF_FILE", "/etc/coil/netconf.json");
    let settings = env(&[("CNI_NETCONF", NETCONF), file]).unwrap();
    assert_eq!(settings.netconf, Netconf::Text(NETCONF.into()), "as in Coil v2");
    for pairs in [&[file][..], &[("CNI_NETCONF", ""), file]] {
        assert_eq!(env(pairs).unwrap().netconf, Netconf::File("/etc/coil/netconf.json".into()));
    }
    assert!(env(&[]).unwrap_err().to_string().starts_with("CNI_NETCONF: not set"));
    let error = env(&[("CNI_NETCONF", NETCONF), ("CNI_CONF_NAME", "../x.conflist")]).unwrap_err().to_string();
    assert!(error.starts_with("CNI_CONF_NAME"), "{error}");
}

#[test]
fn behind_another_plugin() {
    let (_root, mut settings) = node();
    settings.netconf = Netconf::Chain { after: None };
    settings.conf_name = "00-coil.conflist".into();
    let own = settings.etc_dir.join("00-coil.conflist");
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("no plugin to come after"), "{error}");
    assert!(names(&settings.etc_dir).is_empty() && names(&settings.bin_dir).is_empty());

    let theirs =
        r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[{"type":"ptp","mtu":1400},{"type":"portmap"}]}"#;
    let put = |name: &str, text: &str| fs::write(settings.etc_dir.join(name), text).unwrap();
    put("10-kindnet.conflist", theirs);
    put("87-podman.conflist", r#"{"name":"podman","plugins":[{"type":"bridge"}]}"#);
    put("00-notes.txt", "{");
    install(&settings).unwrap();
    let read = |path: &Path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let list = read(&own);
    let types = |list: &Value| plugin_types(list).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(types(&list), ["ptp", "portmap", "coil"]);
    assert_eq!((&list["name"], &list["cniVersion"]), (&"kindnet".into(), &"0.3.1".into()));
    assert_eq!(
        (&list["plugins"][0]["mtu"], &list["plugins"][2]["socket"]),
        (&1400.into(), &"/run/coild.sock".into())
    );
    assert_eq!(fs::read_to_string(settings.etc_dir.join("10-kindnet.conflist")).unwrap(), theirs);
    assert_eq!(install(&settings).unwrap(), Installed::default());

    // What the other plugin has changed is followed; a single plugin becomes a list.
    put("10-kindnet.conflist", r#"{"cniVersion":"0.3.1","name":"kindnet","type":"ptp"}"#);
    assert_eq!(install(&settings).unwrap().written, std::slice::from_ref(&own));
    assert_eq!(types(&read(&own)), ["ptp", "coil"]);
    // A list that somebody has put coil into is used as it is: the copy would hide it.
    put("10-kindnet.conflist", CHAINED);
    assert_eq!(install(&settings).unwrap().removed, std::slice::from_ref(&own));
    assert_eq!(install(&settings).unwrap(), Installed::default());
    // The copy must come first.
    settings.conf_name = "50-coil.conflist".into();
    put("10-kindnet.conflist", theirs);
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("10-kindnet.conflist comes first"), "{error}");
}

#[test]
fn behind_the_plugin_that_is_named() {
    let (_root, mut settings) = node();
    settings.conf_name = "00-coil.conflist".into();
    let own = settings.etc_dir.join("00-coil.conflist");
    let put = |name: &str, text: &str| fs::write(settings.etc_dir.join(name), text).unwrap();
    put("10-bridge.conflist", r#"{"cniVersion":"1.0.0","name":"left-over","plugins":[{"type":"bridge"}]}"#);
    let after = |name: &str| Netconf::Chain { after: Some(name.into()) };
    // What is there first is another's: the named one is waited for.
    settings.netconf = after("calico-network");
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.starts_with("CNI_CHAIN_NAME") && error.contains("10-bridge.conflist"), "{error}");
    assert!(!own.exists() && names(&settings.bin_dir).is_empty());

    let theirs = r#"{"cniVersion":"1.0.0","name":"calico-network","plugins":[{"type":"calico"}]}"#;
    put("20-calico.conflist", theirs);
    // A token may be in it: who may not read the original may not read the copy.
    let original = settings.etc_dir.join("20-calico.conflist");
    fs::set_permissions(&original, fs::Permissions::from_mode(0o600)).unwrap();
    for name in ["calico-network", "20-calico.conflist"] {
        settings.netconf = after(name);
        install(&settings).unwrap();
        let list: Value = serde_json::from_str(&fs::read_to_string(&own).unwrap()).unwrap();
        assert_eq!(plugin_types(&list).collect::<Vec<_>>(), ["calico", "coil"]);
        assert_eq!(mode(&own), 0o600);
        assert_eq!(install(&settings).unwrap(), Installed::default());
    }
    // With coil in it by hand, but behind another's, no runtime would look at it.
    put("20-calico.conflist", &CHAINED.replace("k8s-pod-network", "calico-network"));
    let error = install(&settings).unwrap_err().to_string();
    assert!(error.contains("10-bridge.conflist comes first"), "{error}");
    fs::remove_file(settings.etc_dir.join("10-bridge.conflist")).unwrap();
    assert_eq!(install(&settings).unwrap().removed, [own]);
}

#[test]
fn the_variables_of_a_chain() {
    let env =
        |value: &'static str| Settings::from_env(move |name| (name == "CNI_CHAIN").then(|| value.into()));
    assert_eq!(env("true").unwrap().netconf, Netconf::Chain { after: None });
    let named = |chain: &'static str| {
        Settings::from_env(move |name| match name {
            "CNI_CHAIN" => Some(chain.into()),
            "CNI_CHAIN_NAME" => Some("kindnet".into()),
            _ => None,
        })
    };
    assert_eq!(named("true").unwrap().netconf, Netconf::Chain { after: Some("kindnet".into()) });
    assert!(named("false").unwrap_err().to_string().starts_with("CNI_CHAIN_NAME"));
    assert!(env("yes").unwrap_err().to_string().starts_with("CNI_CHAIN"));
    assert!(env("false").unwrap_err().to_string().starts_with("CNI_NETCONF: not set"));
}
