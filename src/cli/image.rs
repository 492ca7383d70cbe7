//! `podwright image`: list, pull, load, verify and remove images.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use indicatif::BinaryBytes;
use podwright_proto::podwright::v1::{LoadImageRequest, PullImageRequest};
use podwright_proto::runtime::v1::{AuthConfig, ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest};

use super::client::{Client, said};
use super::progress::Progress;
use super::table::{Table, short};
use super::verify::{Verify, verify};

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List images
    Ls,
    /// Fetch an image from its registry
    Pull(Pull),
    /// Remove images
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Compare images on disk with what was pulled, file by file
    Verify(Verify),
    /// Import images from a tar file: an OCI layout, or what `docker save` writes
    Load {
        /// The file
        file: PathBuf,
    },
}

/// What to fetch, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// The image's name
    image: String,
    /// Log in to the registry as this user; the password is read from stdin
    #[arg(long)]
    username: Option<String>,
}

/// Does it.
pub(crate) async fn image(client: &mut Client, command: Command) -> Result<()> {
    match command {
        Command::Ls => list(client).await,
        Command::Pull(args) => {
            let auth = args.username.map(read_password).transpose()?;
            let id = pull(client, &args.image, auth).await?;
            Ok(writeln!(io::stdout(), "{id}")?)
        }
        Command::Rm { images } => remove(client, &images).await,
        Command::Load { file } => load(client, &file).await,
        Command::Verify(args) => verify(client, args).await,
    }
}

/// Returns the id of an image that is here, after fetching it if it is not.
pub(crate) async fn ensure(client: &mut Client, image: &str) -> Result<String> {
    match find(client, image).await? {
        Some(id) => Ok(id),
        None => pull(client, image, None).await,
    }
}

async fn find(client: &mut Client, image: &str) -> Result<Option<String>> {
    let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
    let answer = client.images.image_status(request).await.map_err(said)?.into_inner();
    Ok(answer.image.map(|image| image.id))
}

async fn pull(client: &mut Client, image: &str, auth: Option<AuthConfig>) -> Result<String> {
    let request = PullImageRequest { image: image.to_owned(), auth };
    let what = || format!("pull {image}");
    let mut stream = client.node.pull_image(request).await.map_err(said).with_context(what)?.into_inner();
    let mut progress = Progress::new();
    while let Some(message) = stream.message().await.map_err(said).with_context(what)? {
        progress.layers(&message.layers)?;
        if let Some(image) = message.image {
            return Ok(image.id);
        }
    }
    bail!("pull {image}: the daemon ended the pull without an image")
}

async fn load(client: &mut Client, file: &PathBuf) -> Result<()> {
    let what = || format!("load {}", file.display());
    // The daemon opens it, from another working directory.
    let path = std::path::absolute(file).with_context(what)?;
    let path =
        path.into_os_string().into_string().map_err(|_| anyhow::anyhow!("the path is not UTF-8")).with_context(what)?;
    let mut stream =
        client.node.load_image(LoadImageRequest { path }).await.map_err(said).with_context(what)?.into_inner();
    let mut progress = Progress::new();
    while let Some(message) = stream.message().await.map_err(said).with_context(what)? {
        let done = !message.images.is_empty();
        progress.part("archive", message.read_bytes, message.total_bytes, done)?;
        for image in &message.images {
            writeln!(io::stdout(), "{}  {}", image.id, image.names.join(" "))?;
        }
        if done {
            return Ok(());
        }
    }
    bail!("{}: the daemon ended the import without an image", what())
}

async fn remove(client: &mut Client, images: &[String]) -> Result<()> {
    for image in images {
        // The CRI's removal of an image that is not here succeeds, which hides a misspelt name.
        let Some(id) = find(client, image).await? else {
            bail!("there is no image {image:?}: `podwright image ls` lists them")
        };
        let request = RemoveImageRequest { image: Some(spec(image)) };
        client.images.remove_image(request).await.map_err(said).with_context(|| format!("remove {image}"))?;
        writeln!(io::stdout(), "{id}")?;
    }
    Ok(())
}

async fn list(client: &mut Client) -> Result<()> {
    let mut images = client.images.list_images(ListImagesRequest::default()).await.map_err(said)?.into_inner().images;
    images.sort_by(|a, b| (&a.repo_tags, &a.repo_digests, &a.id).cmp(&(&b.repo_tags, &b.repo_digests, &b.id)));
    let mut table = Table::new(&["IMAGE", "ID", "SIZE"]);
    for image in images {
        let untagged = || image.repo_digests.first().cloned().unwrap_or_else(|| "<none>".to_owned());
        let names = if image.repo_tags.is_empty() { vec![untagged()] } else { image.repo_tags };
        for name in names {
            table.row([name, short(&image.id), BinaryBytes(image.size).to_string()]);
        }
    }
    Ok(write!(io::stdout(), "{table}")?)
}

/// Reads the password's line, which on a command line every user of the machine could see.
fn read_password(username: String) -> Result<AuthConfig> {
    let mut password = String::new();
    io::stdin().lock().read_line(&mut password).context("read the password from stdin")?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() {
        bail!("--username: no password on stdin");
    }
    Ok(AuthConfig { username, password, ..Default::default() })
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}
