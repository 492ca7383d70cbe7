//! A connection to the system's or a user's manager, and the few calls on it.
//!
//! Both are asked by way of their bus. The manager has a socket of its own too, but what it sends there carries a sender that
//! is no unique name, and no strict client takes that.

use zbus::Message;
use zbus::connection::{Builder, Connection};
use zbus::wire::DynamicDeserialize;
use zbus::{DynamicType, OwnedObjectPath, OwnedVariant};

use crate::error::Error;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const DESTINATION: &str = "org.freedesktop.systemd1";

pub(crate) struct Bus(Connection);

impl Bus {
    /// Connects to the bus of the system's manager, or of that of the calling user.
    pub(crate) async fn connect(user: bool) -> Result<Self, Error> {
        let (builder, name) =
            if user { (Builder::session(), "the user's bus") } else { (Builder::system(), "the system bus") };
        let connection = with_user(builder).build().await;
        connection.map(Self).map_err(|source| Error::Connect { address: name.to_owned(), source })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0
    }

    /// Calls a method of the manager.
    pub(crate) async fn call<B>(&self, method: &'static str, unit: &str, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + DynamicType,
    {
        let answer = self.0.call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), method, body).await;
        answer.map_err(|error| Error::of_call(method, unit, error))
    }

    /// Reads a property of the manager that is a text.
    pub(crate) async fn manager_property(&self, name: &'static str) -> Result<String, Error> {
        self.property(MANAGER_PATH, MANAGER, name, "the manager").await
    }

    /// Asks where a unit's cgroup is.
    pub(crate) async fn unit_cgroup(&self, unit: &str) -> Result<String, Error> {
        let path: OwnedObjectPath = body(&self.call("GetUnit", unit, &(unit,)).await?)?;
        let slice = unit.ends_with(".slice");
        let interface = if slice { "org.freedesktop.systemd1.Slice" } else { "org.freedesktop.systemd1.Scope" };
        self.property(path.as_str(), interface, "ControlGroup", unit).await
    }

    async fn property(&self, path: &str, interface: &str, name: &'static str, unit: &str) -> Result<String, Error> {
        let answer = self.0.call_method(Some(DESTINATION), path, Some(PROPERTIES), "Get", &(interface, name)).await;
        let value: OwnedVariant = body(&answer.map_err(|error| Error::of_call("Get", unit, error))?)?;
        String::try_from(value).map_err(Error::Answer)
    }

    /// Ends the connection, and with it all that works for it in the background.
    pub(crate) async fn close(self) {
        // The answers are all there: what closing may say changes nothing.
        let _ = self.0.close().await;
    }
}

/// Reads an answer.
pub(crate) fn body<T: for<'a> DynamicDeserialize<'a>>(message: &Message) -> Result<T, Error> {
    message.body().deserialize().map_err(Error::Answer)
}

/// The other end knows us by the number that we have where it runs, which in a user namespace is another one than our own.
fn with_user(builder: Builder<'_>) -> Builder<'_> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    match outside(&map, rustix::process::geteuid().as_raw()) {
        Some(uid) => builder.user_id(uid),
        None => builder,
    }
}

/// Finds a user's number outside by the lines of `uid_map` (user_namespaces(7)).
fn outside(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let numbers: Vec<u32> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        let [inside, outside, count] = numbers[..] else { return None };
        uid.checked_sub(inside).filter(|offset| *offset < count).and_then(|offset| outside.checked_add(offset))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_the_number_outside() {
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(outside(rootless, 0), Some(1000));
        assert_eq!(outside(rootless, 5), Some(100_004));
        assert_eq!(outside(rootless, 70_000), None);
        assert_eq!(outside("         0          0 4294967295\n", 1000), Some(1000));
        assert_eq!(outside("", 0), None);
    }
}
