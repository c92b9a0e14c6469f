//! `cargo xtask chart`

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{generated, run};

/// Generate the templates of deploy/chart/ from the manifests in deploy/.
///
/// So that there is one place to change a manifest: a template is a manifest whose lines that values decide are
/// replaced. Chart.yaml, values.yaml and values.schema.json are written by hand.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the files are not what the manifests say
    #[arg(long)]
    check: bool,
}

impl Args {
    /// As `--check`.
    pub(crate) fn check() -> Self {
        Self { check: true }
    }
}

/// Folders of the chart that are generated, whole.
const GENERATED: [&str; 2] = ["templates", "crds"];

/// A line or lines of a manifest, and what stands there in the template.
struct Edit {
    from: &'static str,
    to: &'static str,
}

const IMAGE: Edit =
    Edit { from: "image: coil\n", to: "image: \"{{ .Values.image.name }}:{{ .Values.image.tag }}\"\n" };

const FAMILIES: Edit = Edit {
    from: "spec:\n  selector:\n",
    to: "spec:\n  {{- if .Values.webhooks.dualStack }}\n  ipFamilyPolicy: PreferDualStack\n  {{- end }}\n  selector:\n",
};

const ROTATION: Edit = Edit {
    from: "        - --enable-cert-rotation=true\n",
    to: "        {{- if .Values.webhooks.ownCertificates }}
        - --enable-cert-rotation=false
        {{- else }}
        - --enable-cert-rotation=true
        {{- end }}
        {{- if .Values.webhooks.restartOnCertRefresh }}
        - --enable-restart-on-cert-refresh=true
        {{- end }}
",
};

/// Where the mounted certificate comes in; `PART` is the controller's.
const MOUNT: Edit = Edit {
    from: "          failureThreshold: 6\n---\n",
    to: "          failureThreshold: 6
        {{- if .Values.webhooks.ownCertificates }}
        volumeMounts:
        - name: cert
          mountPath: /certs
          readOnly: true
      volumes:
      - name: cert
        secret:
          secretName: coilv2-PART-webhook-server-cert
        {{- end }}
---
",
};

const AGENT: [Edit; 6] = [
    IMAGE,
    Edit {
        from: "        - --enable-ipam=true\n        - --enable-egress=true\n",
        to: "        - --enable-ipam={{ .Values.ipam.enabled }}
        - --enable-egress={{ .Values.egress.enabled }}
        {{- if not .Values.ipam.enabled }}
        - --pod-table-id={{ .Values.chained.podTableId | int64 }}
        - --protocol-id=2
        {{- end }}
        {{- if .Values.coild.compatCalico }}
        - --compat-calico=true
        {{- end }}
        {{- if .Values.coild.kernelDatapath }}
        - --datapath=kernel
        {{- end }}
        {{- range .Values.coild.extraArgs }}
        - {{ . | toJson }}
        {{- end }}
",
    },
    Edit {
        from: "        - name: CNI_NETCONF
          valueFrom:
            configMapKeyRef:
              name: coil-config
              key: cni_netconf
",
        to: "        {{- if .Values.ipam.enabled }}
        - name: CNI_NETCONF
          valueFrom:
            configMapKeyRef:
              name: coil-config
              key: cni_netconf
        {{- else }}
        - name: CNI_CHAIN
          value: \"true\"
        - name: CNI_CHAIN_NAME
          value: {{ .Values.chained.name | toJson }}
        - name: CNI_CONF_NAME
          value: {{ .Values.chained.confName | toJson }}
        {{- end }}
",
    },
    Edit {
        from: "            - BPF # loading programs, and maps
            - PERFMON # programs that compare packet pointers and read the kernel's types
",
        to: "            {{- if .Values.coild.kernelDatapath }}
            - SYS_MODULE # loading fou and fou6, which no kernel loads by itself, for egress
            {{- else }}
            - BPF # loading programs, and maps
            - PERFMON # programs that compare packet pointers and read the kernel's types
            {{- end }}
",
    },
    Edit {
        from: "          mountPath: /host/proc/sys/net # the container's own /proc/sys is read-only
",
        to: "          mountPath: /host/proc/sys/net # the container's own /proc/sys is read-only
        {{- if .Values.coild.kernelDatapath }}
        - name: modules
          mountPath: /lib/modules # the running kernel's modules, for egress
          readOnly: true
        {{- end }}
",
    },
    Edit {
        from: "      - name: cni-net-dir
        hostPath:
          path: /etc/cni/net.d
          type: DirectoryOrCreate
",
        to: "      - name: cni-net-dir
        hostPath:
          path: /etc/cni/net.d
          type: DirectoryOrCreate
      {{- if .Values.coild.kernelDatapath }}
      - name: modules
        hostPath:
          path: /lib/modules # without a type: a kernel with everything built in may have none
      {{- end }}
",
    },
];

const NETCONF: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: coil-config
  namespace: kube-system
  labels:
    app.kubernetes.io/name: coil
data:
  cni_netconf: {{ .Values.netconf | toJson }}
";

/// What no schema says, in words that say what to do.
const CHECKS: &str = r#"{{- if not .Values.ipam.enabled }}
{{- if not .Values.egress.enabled }}
{{- fail "ipam.enabled and egress.enabled are both false: nothing is left of Coil; enable one" }}
{{- end }}
{{- end }}
{{- if not (kindIs "string" .Values.image.tag) }}
{{- fail "image.tag is a number, and 1.10 as a number is 1.1: quote it in a file, or use --set-string image.tag=TAG" }}
{{- end }}
{{- if hasKey (fromJson .Values.netconf) "Error" }}
{{- fail "netconf is not a JSON object: use --set-file netconf=FILE, as --set takes commas for itself" }}
{{- end }}
"#;

pub(crate) fn run(args: &Args) -> Result<()> {
    let files = generate(&run::root().join("deploy"))?;
    let chart = run::root().join("deploy/chart");
    if args.check {
        ensure!(
            files == read(&chart)?,
            "deploy/chart is not what the manifests in deploy say: run `cargo xtask chart` and commit the result"
        );
        return Ok(());
    }
    for dir in GENERATED {
        generated::clear(&chart.join(dir))?;
    }
    for (path, text) in files {
        let path = chart.join(path);
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Everything generated, by path in the chart.
fn generate(deploy: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let read = |path: &str| {
        let path = deploy.join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut add = |path: String, template: String, conditions: &[&str]| {
        let mut text = format!("# Generated by `cargo xtask chart` from deploy/{path}.\n");
        conditions.iter().for_each(|condition| text += &format!("{{{{- if {condition} }}}}\n"));
        text += &template;
        conditions.iter().for_each(|_| text += "{{- end }}\n");
        files.insert(Path::new("templates").join(path.replace('/', "-")), text);
    };
    for part in ["ipam", "egress"] {
        let enabled = format!(".Values.{part}.enabled");
        for name in ["webhook", "rbac", "certs", "deployment", "coild", "viewers", "gateway"] {
            let path = format!("{part}/{name}.yaml");
            if name == "gateway" && part == "ipam" {
                continue;
            }
            let text = read(&path)?;
            let (template, own): (String, &[&str]) = match name {
                "webhook" => (edited(&path, &text, &[FAMILIES])?, &[]),
                "deployment" => (edited(&path, &text, &[IMAGE, ROTATION, MOUNT])?.replace("PART", part), &[]),
                "certs" => (text, &["not .Values.webhooks.ownCertificates"]),
                _ => (text, &[]),
            };
            add(path, template, &[&[&*enabled], own].concat());
        }
    }
    add("coild/rbac.yaml".into(), read("coild/rbac.yaml")?, &[]);
    add("coild/daemonset.yaml".into(), edited("coild", &read("coild/daemonset.yaml")?, &AGENT)?, &[]);
    add("netconf/netconf.yaml".into(), NETCONF.to_owned(), &[".Values.ipam.enabled"]);
    for name in ["rbac", "daemonset"] {
        let path = format!("router/{name}.yaml");
        let text = read(&path)?;
        let template = if name == "daemonset" { edited(&path, &text, &[IMAGE])? } else { text };
        add(path, template, &[".Values.router.enabled"]);
    }
    files.insert("templates/checks.yaml".into(), format!("# Generated by `cargo xtask chart`.\n{CHECKS}"));
    for part in ["ipam", "egress"] {
        let definitions = generated::read(&deploy.join("crds").join(part))?.into_iter();
        let definitions = definitions.filter(|(path, _)| !path.ends_with("kustomization.yaml"));
        files.extend(definitions.map(|(path, text)| (Path::new("crds").join(path), text)));
    }
    Ok(files)
}

/// A manifest with its lines replaced; each must be there.
fn edited(path: &str, text: &str, edits: &[Edit]) -> Result<String> {
    let mut text = text.to_owned();
    for edit in edits {
        ensure!(text.contains(edit.from), "deploy/{path} has no {:?}: adapt xtask/src/chart.rs", edit.from);
        text = text.replace(edit.from, edit.to);
    }
    Ok(text)
}

/// The generated files that are there.
fn read(chart: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for dir in GENERATED {
        let there = generated::read(&chart.join(dir))?.into_iter();
        files.extend(there.map(|(path, text)| (Path::new(dir).join(path), text)));
    }
    Ok(files)
}
