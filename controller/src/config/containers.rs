//! Settings of the `docker` and `compose` runtimes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use uh_settings::Section;

/// How containers are created through the Engine API.
#[derive(Debug, Clone, PartialEq)]
pub struct DockerSettings {
    /// The build context directory; `None`: the image is pulled.
    pub context: Option<PathBuf>,
    /// Its Dockerfile, relative to the context.
    pub dockerfile: String,
    /// The stage to build; `None`: the last one.
    pub target: Option<String>,
    /// Build arguments. They end up in the image's history, so they must not be secret.
    pub build_args: BTreeMap<String, String>,
    /// The image's name. With a context, the name given to the built image.
    pub image: String,
    /// When to pull the image.
    pub pull: Pull,
    /// The command; empty: the image's own.
    pub command: Vec<String>,
    /// The port the app listens on in its container; `None`: the endpoint's.
    pub port: Option<u16>,
    /// Variables to set.
    pub env: BTreeMap<String, String>,
    /// Environment file. Its values are secret.
    pub env_file: Option<PathBuf>,
    /// Variables to pass on from uh-deploy's environment. Their values are secret.
    pub env_from: Vec<String>,
    /// Networks to join; empty: the engine's own bridge.
    pub networks: Vec<String>,
    /// `name:/path` or `/host/path:/path`, with `:ro` for read-only.
    pub volumes: Vec<String>,
    /// Memory limit in bytes; `None`: none.
    pub memory_limit: Option<u64>,
    /// CPU limit in thousandths of a CPU; `None`: none.
    pub cpu_millis: Option<u32>,
    /// The most processes; `None`: no limit.
    pub pids_limit: Option<u32>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Directories in memory: `/tmp`, or `/tmp:size=64m`.
    pub tmpfs: Vec<String>,
    /// Capabilities to drop: `ALL`.
    pub cap_drop: Vec<String>,
    /// Security options: `no-new-privileges:true`.
    pub security_opt: Vec<String>,
    /// Whether it is restarted after a crash or reboot.
    pub restart: Restart,
    /// Size in bytes at which a log file is rotated.
    pub log_size: u64,
    /// How many log files are kept.
    pub log_files: u32,
    /// How many deployed images are kept; `None`: all.
    pub image_keep: Option<u32>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// If it isn't on this host.
    Missing,
    /// At every deploy.
    Always,
    /// Never: it must be on this host.
    Never,
}

/// Whether an instance is restarted when it exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always, until it is stopped.
    UnlessStopped,
    /// Never.
    No,
}

/// How the user's compose files are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeSettings {
    /// The files, in their order.
    pub files: Vec<PathBuf>,
    /// The project; `None`: the tool's default, from the first file's directory.
    pub project: Option<String>,
    /// The compose service of a backend. `{backend}` is replaced.
    pub service: String,
    /// Profiles to enable.
    pub profiles: Vec<String>,
    /// Variables for the files' `${…}`. `{backend}` and `{version}` are replaced.
    pub env: BTreeMap<String, String>,
    /// Environment file for the files' `${…}`. Its values are secret.
    pub env_file: Option<PathBuf>,
    /// When to pull the image.
    pub pull: Pull,
    /// How many deployed images are kept; `None`: all.
    pub image_keep: Option<u32>,
}

fn image_keep(section: &mut Section) -> Option<u32> {
    section.has("image_keep").then(|| section.integer("image_keep", 1, (1, 10_000)))
}

const PULLS: [(&str, Pull); 3] =
    [("missing", Pull::Missing), ("always", Pull::Always), ("never", Pull::Never)];

pub(super) fn docker(section: &mut Section) -> DockerSettings {
    let context = section.optional_path("context");
    let image = section.text("image");
    if context.is_none() && image.is_none() {
        section.mistake("image", "missing: name an image to pull, or set context to build one");
    }
    DockerSettings {
        context,
        dockerfile: section.text("dockerfile").unwrap_or_else(|| "Dockerfile".to_owned()),
        target: section.text("target"),
        build_args: section.texts("build_args"),
        image: image.unwrap_or_else(|| "{service}:{version}".to_owned()),
        pull: section.choice("pull", Pull::Missing, &PULLS),
        command: section.list::<String>("command").unwrap_or_default(),
        port: section
            .has("port")
            .then(|| u16::try_from(section.integer("port", 3000, (1, 65_535))).unwrap_or(u16::MAX)),
        env: section.texts("env"),
        env_file: section.optional_path("env_file"),
        env_from: section.list::<String>("env_from").unwrap_or_default(),
        networks: section.list::<String>("networks").unwrap_or_default(),
        volumes: volumes(section),
        memory_limit: section
            .has("memory_limit")
            .then(|| section.size("memory_limit", u64::MAX, (MIN_MEMORY, i64::MAX as u64))),
        cpu_millis: section.has("cpu_millis").then(|| section.integer("cpu_millis", 1000, (10, 1_000_000))),
        pids_limit: section.has("pids_limit").then(|| section.integer("pids_limit", 512, (1, 4_194_304))),
        read_only: section.boolean("read_only", false),
        tmpfs: tmpfs(section),
        cap_drop: section.list::<String>("cap_drop").unwrap_or_default(),
        security_opt: section.list::<String>("security_opt").unwrap_or_default(),
        restart: restart(section),
        log_size: section.size("log_size", 10 << 20, (1 << 10, 1 << 40)),
        log_files: section.integer("log_files", 3, (1, 100)),
        image_keep: image_keep(section),
    }
}

/// The engine rejects less (Engine API, `Memory`).
const MIN_MEMORY: u64 = 6 << 20;

fn volumes(section: &mut Section) -> Vec<String> {
    let volumes = section.list::<String>("volumes").unwrap_or_default();
    for (index, volume) in volumes.iter().enumerate() {
        let mut parts = volume.split(':');
        let source = parts.next().unwrap_or_default();
        let inside = parts.next().unwrap_or_default();
        if source.is_empty() || source.starts_with('.') || !inside.starts_with('/') {
            let reason = format!(
                "{volume:?} isn't a volume: write name:/path or /host/path:/path, optionally with :ro"
            );
            section.mistake(&format!("volumes[{index}]"), reason);
        }
    }
    volumes
}

fn tmpfs(section: &mut Section) -> Vec<String> {
    let directories = section.list::<String>("tmpfs").unwrap_or_default();
    for (index, directory) in directories.iter().enumerate() {
        if !directory.starts_with('/') {
            let reason = format!("{directory:?} isn't a directory: write /path or /path:size=64m");
            section.mistake(&format!("tmpfs[{index}]"), reason);
        }
    }
    directories
}

pub(super) fn compose(section: &mut Section) -> ComposeSettings {
    let given = section.has("files");
    let mut files: Vec<PathBuf> = section.paths("files");
    if files.is_empty() && !given {
        files = vec![section.resolve("docker-compose.yml")];
    } else if files.is_empty() {
        section.mistake("files", "empty: list at least one compose file");
    }
    let service = section.text("service").unwrap_or_else(|| "{backend}".to_owned());
    if !service.contains("{backend}") {
        let reason =
            format!("{service:?} would be one container for all backends: include {{backend}} in it");
        section.mistake("service", reason);
    }
    ComposeSettings {
        files,
        project: section.text("project"),
        service,
        profiles: section.list::<String>("profiles").unwrap_or_default(),
        env: section.texts("env"),
        env_file: section.optional_path("env_file"),
        pull: section.choice("pull", Pull::Missing, &PULLS),
        image_keep: image_keep(section),
    }
}

/// `restart`, the same for containers and processes.
pub(super) fn restart(section: &mut Section) -> Restart {
    let choices = [("unless-stopped", Restart::UnlessStopped), ("no", Restart::No)];
    section.choice("restart", Restart::UnlessStopped, &choices)
}
