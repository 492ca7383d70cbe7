//! Cold pulls: how long a runtime takes from the call to the answer, and to data on disk, and what it uses for it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use podwright_proto::runtime::v1::image_service_client::ImageServiceClient;
use podwright_proto::runtime::v1::*;
use serde::Serialize;
use tonic::transport::Channel;

use crate::{client, cpu};

/// A runtime that has used no processor time for so long has nothing left to do of the round before.
const QUIET: Duration = Duration::from_millis(300);
/// How long that is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Measure cold pulls of one image
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pulls by each runtime
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What is pulled; every runtime removes it before each round
    #[arg(long)]
    image: String,
    /// The registry's process: counts the bytes it serves
    #[arg(long, value_name = "PID")]
    registry_pid: Option<u32>,
    /// Drops the kernel's caches before each pull, those of the registry's files too
    #[arg(long)]
    drop_caches: bool,
    /// What to call each runtime, and its socket
    #[arg(required = true, value_name = "NAME=SOCKET")]
    runtimes: Vec<String>,
}

/// One pull.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Pull {
    /// Milliseconds until `PullImage` has answered.
    pub(crate) answered: f64,
    /// Milliseconds until all of it is on disk too.
    pub(crate) synced: f64,
    /// Milliseconds of processor time, of the daemon and what it started.
    pub(crate) cpu: f64,
    /// Bytes that the registry has written meanwhile, 0 where it is not known.
    pub(crate) served: u64,
}

/// What was found of one runtime.
#[derive(Debug, Serialize)]
pub(crate) struct Pulls {
    pub(crate) name: String,
    pub(crate) pulls: Vec<Pull>,
}

/// Runs the rounds, each runtime once in each.
pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Pulls>> {
    let mut measured = Vec::new();
    for argument in &arguments.runtimes {
        let (name, socket) = client::named(argument)?;
        let puller = Puller::connect(socket, arguments).await.with_context(|| format!("use {name}"))?;
        measured.push((puller, Pulls { name: name.to_owned(), pulls: Vec::new() }));
    }
    for _ in 0..arguments.rounds {
        for (puller, found) in &mut measured {
            puller.prepare().await.with_context(|| format!("remove the image from {}", found.name))?;
            found.pulls.push(puller.pull().await.with_context(|| format!("pull by {}", found.name))?);
        }
    }
    for (puller, _) in &mut measured {
        puller.prepare().await?;
    }
    Ok(measured.into_iter().map(|(_, found)| found).collect())
}

/// One runtime's image service.
struct Puller<'a> {
    images: ImageServiceClient<Channel>,
    daemon: u32,
    store: PathBuf,
    arguments: &'a Arguments,
}

impl<'a> Puller<'a> {
    async fn connect(socket: &str, arguments: &'a Arguments) -> anyhow::Result<Self> {
        let mut images = ImageServiceClient::new(client::channel(socket).await?);
        let info = images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
        let store = info.image_filesystems.into_iter().next().and_then(|usage| usage.fs_id);
        let store = store.context("it names no file system for its images")?.mountpoint.into();
        Ok(Self { images, daemon: client::daemon(socket).await?, store, arguments })
    }

    fn spec(&self) -> Option<ImageSpec> {
        Some(ImageSpec { image: self.arguments.image.clone(), ..Default::default() })
    }

    /// Removes the image and lets all that this causes come to its end.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        self.images.remove_image(RemoveImageRequest { image: self.spec() }).await?;
        self.sync()?;
        let (clock, mut used) = (Instant::now(), cpu::time(self.daemon)?);
        loop {
            tokio::time::sleep(QUIET).await;
            let now = cpu::time(self.daemon)?;
            if now == used || clock.elapsed() > LONGEST_WAIT {
                break;
            }
            used = now;
        }
        self.sync()?;
        if self.arguments.drop_caches {
            fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches")?;
        }
        Ok(())
    }

    async fn pull(&mut self) -> anyhow::Result<Pull> {
        let (cpu, served) = (cpu::time(self.daemon)?, self.served()?);
        let request = PullImageRequest { image: self.spec(), ..Default::default() };
        let clock = Instant::now();
        self.images.pull_image(request).await?;
        let answered = client::milliseconds(clock);
        self.sync()?;
        Ok(Pull {
            answered,
            synced: client::milliseconds(clock),
            cpu: cpu::time(self.daemon)?.saturating_sub(cpu).as_secs_f64() * 1e3,
            served: self.served()? - served,
        })
    }

    fn served(&self) -> anyhow::Result<u64> {
        self.arguments.registry_pid.map_or(Ok(0), cpu::written)
    }

    /// Waits until the file system that holds the images has all of it on disk.
    fn sync(&self) -> anyhow::Result<()> {
        let store = File::open(&self.store).with_context(|| format!("open {}", self.store.display()))?;
        rustix::fs::syncfs(store).with_context(|| format!("sync {}", self.store.display()))
    }
}
