//! Which image a request means, and with whose credentials.

use podwright_core::Error;
use podwright_images::Credentials;
use podwright_proto::runtime::v1;

use super::field::{Field, not_empty, required};

/// Reads the name or id of an image.
pub(crate) fn name(image: Option<v1::ImageSpec>) -> Result<String, Error> {
    let at = Field::root("image");
    let image = required(image, at)?;
    if !image.runtime_handler.is_empty() {
        return Err(super::unknown_handler(&image.runtime_handler, at.child("runtime_handler")));
    }
    not_empty(image.image, at.child("image"))
}

/// Reads credentials; those of which every field is empty are none.
pub(crate) fn credentials(auth: Option<v1::AuthConfig>) -> Option<Credentials> {
    let auth = auth.filter(|auth| *auth != v1::AuthConfig::default())?;
    Some(Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    })
}
