//! Large layers: what has come stays, and what is slow comes in ranges.

use std::fs;
use std::path::PathBuf;

use podwright_base::Digest;

use super::image::{Layer, Tar, TestImage};
use super::registry::{Fault, Node, Registry};

/// Longer than what is kept at all.
const LENGTH: usize = 3 << 20;

/// Bytes that do not compress, so that the blob is as long as it looks.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(LENGTH).collect()
}

fn big(seed: u32) -> TestImage {
    TestImage::new(vec![Layer::gzip(Tar::default().file("noise", noise(seed)))])
}

fn part(node: &Node, blob: &Digest) -> PathBuf {
    node.dir.path().join("root/content/ingest").join(format!("{}.part", blob.hex()))
}

/// Gives a pull up when the registry has sent so much and no more.
async fn give_up(node: &Node, registry: &Registry, name: &str, blob: &Digest, sent: usize) {
    registry.fault(blob.as_str(), Fault::Stall(sent));
    let place = part(node, blob);
    let taken = async {
        while fs::metadata(&place).map_or(0, |part| part.len()) < sent as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = node.pull(name) => panic!("it stalls"),
        () = taken => {}
    }
    // The unpacker ends a moment later, and clears all but the part.
    while node.residue() != [format!("content/ingest/{}.part", blob.hex())] {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pull_that_was_given_up_goes_on_where_it_was() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big(1);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    give_up(&node, &registry, &name, &blob, 2_000_000).await;
    // After the daemon's end and start too.
    let node = node.reopen();
    let pulled = node.pull(&name).await.unwrap();
    let asked: Vec<_> = registry.log().into_iter().filter(|asked| asked.path.contains(blob.hex())).collect();
    assert_eq!(asked[1].range, Some("bytes=2000000-".to_owned()));
    assert_eq!(node.images.read_file(&pulled, "noise", LENGTH).unwrap().unwrap(), noise(1));
    assert!(!part(&node, &blob).exists());
}

#[tokio::test]
async fn a_whole_part_needs_no_transfer() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big(2);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    fs::write(part(&node, &blob), &image.layers[0].blob).unwrap();
    node.pull(&name).await.unwrap();
    assert_eq!(registry.count(blob.hex()), 0);
}

#[tokio::test]
async fn a_damaged_part_is_found_out_and_fetched_anew() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big(3);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    let whole = &image.layers[0].blob;
    // As a power cut leaves it: the length is there, the data is not. Or another file altogether, or a longer one.
    let mut holes = whole[..2_000_000].to_vec();
    holes[1_000_000..].fill(0);
    for damaged in [holes, vec![b'x'; 1_500_000], [whole.as_slice(), b"more"].concat()] {
        fs::write(part(&node, &blob), damaged).unwrap();
        let pulled = node.pull(&name).await.unwrap();
        assert_eq!(node.images.read_file(&pulled, "noise", LENGTH).unwrap().unwrap(), noise(3));
        assert!(node.images.remove(&name).await.unwrap());
        assert_eq!(node.residue(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_is_wrong_leaves_no_part() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big(4);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    let mut flipped = image.layers[0].blob.clone();
    flipped[LENGTH / 2] ^= 1;
    registry.fault(blob.as_str(), Fault::Bytes(flipped));
    node.pull(&name).await.unwrap_err();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_leaves_no_part() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big(7);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    let whole = &image.layers[0].blob;
    for wrong in [whole[..whole.len() - 1].to_vec(), [whole.as_slice(), b"more"].concat()] {
        registry.fault(blob.as_str(), Fault::Bytes(wrong));
        node.pull(&name).await.unwrap_err();
        assert_eq!(node.residue(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_slow_layer_is_fetched_in_ranges() {
    let (registry, node) = (Registry::start().await, Node::with(|config, _| config.range_bytes = 500_000));
    let image = big(5);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    registry.fault(blob.as_str(), Fault::Pace(part(&node, &blob)));
    let pulled = node.pull(&name).await.unwrap();
    assert_eq!(node.images.read_file(&pulled, "noise", LENGTH).unwrap().unwrap(), noise(5));
    let asked: Vec<_> = registry.log().into_iter().filter(|asked| asked.path.contains(blob.hex())).collect();
    assert_eq!(asked[0].range, None);
    let ranges: Vec<&str> = asked[1..].iter().map(|asked| asked.range.as_deref().unwrap()).collect();
    let starts: Vec<u64> = ranges
        .iter()
        .map(|range| range.strip_prefix("bytes=").unwrap().split_once('-').unwrap().0.parse().unwrap())
        .collect();
    assert!(starts.len() > 2, "{ranges:?}");
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == 500_000), "{ranges:?}");
}

#[tokio::test]
async fn ranges_that_fail_leave_the_layer_to_one_connection() {
    let (registry, node) = (Registry::start().await, Node::with(|config, _| config.range_bytes = 500_000));
    let image = big(6);
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    registry.fault(blob.as_str(), Fault::Pace(part(&node, &blob)));
    // The first range is answered with everything, as a server does that knows none.
    registry.fault(blob.as_str(), Fault::NoRange);
    let pulled = node.pull(&name).await.unwrap();
    assert_eq!(node.images.read_file(&pulled, "noise", LENGTH).unwrap().unwrap(), noise(6));
    let asked: Vec<_> = registry.log().into_iter().filter(|asked| asked.path.contains(blob.hex())).collect();
    let last = asked.last().unwrap().range.as_deref().unwrap();
    assert!(last.ends_with('-'), "{last}: to the end");
}
