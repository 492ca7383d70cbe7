//! Finds what a word on the command line means: the beginning of an id, or a name.

use anyhow::{Result, bail};
use podwright_proto::runtime::v1::{Container, ContainerState, ListContainersRequest};

use super::client::{Client, said};
use super::table::short;

/// What can be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Whether it is at work; of several with one name such a one is meant.
    pub(crate) live: bool,
}

impl From<&Container> for Candidate {
    fn from(container: &Container) -> Self {
        Self {
            id: container.id.clone(),
            name: container.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            live: container.state() == ContainerState::ContainerRunning,
        }
    }
}

/// Finds a container and returns its id.
pub(crate) async fn container(client: &mut Client, word: &str) -> Result<String> {
    let list = client.runtime.list_containers(ListContainersRequest::default()).await.map_err(said)?.into_inner();
    let candidates: Vec<_> = list.containers.iter().map(Candidate::from).collect();
    match pick(&candidates, word, "containers")? {
        Some(found) => Ok(found.id.clone()),
        None => bail!("there is no container {word:?}: `podwright ps -a` lists them"),
    }
}

/// Picks the one that `word` means; `None`: it means none of them.
///
/// # Errors
/// It fits several.
pub(crate) fn pick<'a>(candidates: &'a [Candidate], word: &str, kind: &str) -> Result<Option<&'a Candidate>> {
    let fits = |test: &dyn Fn(&Candidate) -> bool| candidates.iter().filter(|one| test(one)).collect::<Vec<_>>();
    let of_name = fits(&|one| one.name == word);
    let live = fits(&|one| one.name == word && one.live);
    let of_id = fits(&|one| !word.is_empty() && one.id.starts_with(word));
    let found = [&of_name, &live, &of_id].into_iter().find(|list| list.len() == 1);
    match (found, of_name.len().max(of_id.len())) {
        (Some(list), _) => Ok(list.first().copied()),
        (None, 0) => Ok(None),
        (None, count) => {
            let ids: Vec<_> = of_name.iter().chain(&of_id).map(|one| short(&one.id)).collect();
            bail!("{word:?} means {count} {kind}: give one of {}", ids.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, name: &str, live: bool) -> Candidate {
        Candidate { id: id.into(), name: name.into(), live }
    }

    #[test]
    fn a_word_is_a_name_or_the_beginning_of_an_id() {
        let list = [
            candidate("aa11", "web", false),
            candidate("aa22", "web", true),
            candidate("bb33", "db", false),
            candidate("cc44", "twin", true),
            candidate("cc55", "twin", true),
            candidate("dd66", "bb", false),
        ];
        for (word, want) in [
            ("aa1", Some("aa11")),
            ("web", Some("aa22")),
            ("db", Some("bb33")),
            ("bb3", Some("bb33")),
            ("bb", Some("dd66")),
            ("nothing", None),
            ("", None),
        ] {
            let found = pick(&list, word, "containers").unwrap().map(|one| one.id.as_str());
            assert_eq!(found, want, "{word}");
        }
        for word in ["aa", "twin"] {
            let error = pick(&list, word, "containers").unwrap_err().to_string();
            assert!(error.contains("means 2 containers"), "{error}");
        }
    }
}
