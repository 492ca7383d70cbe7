//! Long lists in batches: what the `Stream…` calls send.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tonic::Status;

/// Encoded bytes after which a batch is sent. Clients take messages of up to 16 MiB, and one item stays far below
/// that: the Kubernetes API limits an object to some megabytes.
const BYTES: usize = 1 << 20;

/// The answer of a streaming call.
pub(crate) type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Streams a list in batches of at least one item.
pub(crate) fn stream<I, T>(items: Vec<I>, answer: fn(Vec<I>) -> T) -> Answers<T>
where
    I: Message + 'static,
    T: Send + 'static,
{
    stream::iter(split(items)).map(move |batch| Ok(answer(batch))).boxed()
}

fn split<I: Message>(items: Vec<I>) -> Vec<Vec<I>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        batch.push(item);
        if bytes >= BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use podwright_proto::runtime::v1::Image;

    use super::*;

    #[test]
    fn every_item_is_in_one_batch_and_none_is_empty() {
        let image = |size: usize| Image { id: "x".repeat(size), ..Default::default() };
        for sizes in [vec![], vec![1], vec![BYTES, 1], vec![BYTES], vec![BYTES / 3; 10]] {
            let items: Vec<_> = sizes.iter().copied().map(image).collect();
            let batches = split(items.clone());
            assert!(batches.iter().all(|batch| !batch.is_empty()));
            assert_eq!(batches.concat(), items);
        }
        assert_eq!(split(vec![image(BYTES / 2); 4]).len(), 2);
    }
}
