//! Who a container's process runs as: the request's identity, else the image's, looked up in the image's own
//! `/etc/passwd` and `/etc/group`.

use serde::{Deserialize, Serialize};

use crate::container::{RunAs, Security};

/// The one id that no process can have: `setresuid(2)` and `chown(2)` read it as "leave unchanged".
const NO_ID: u32 = u32::MAX;

/// Who a process runs as (CRI `LinuxContainerUser`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub additional_gids: Vec<u32>,
    /// Home directory that the image's passwd names.
    pub home: Option<String>,
}

/// Why no user can be told from a request and an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A user name that the image does not have.
    #[error("the image's /etc/passwd has no user {name:?}: name one it has, or give a numeric id")]
    UnknownUser {
        /// Where the name comes from.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A group name that the image does not have.
    #[error("the image's /etc/group has no group {name:?}: name one it has, or give a numeric id")]
    UnknownGroup {
        /// Where the name comes from.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A group without a user: with whom it would be combined depends on the image.
    #[error("a group needs a user beside it: set run_as_user or run_as_username too")]
    GroupWithoutUser {
        /// The group's field.
        field: &'static str,
    },
    /// An image's user that is not of the form `user[:group]`.
    #[error("the image's user {value:?} is not of the form user[:group]")]
    Malformed {
        /// Where the value comes from.
        field: &'static str,
        /// The value.
        value: String,
    },
    /// A number that is no id.
    #[error("{value} is no id: ids go from 0 to {}", NO_ID - 1)]
    OutOfRange {
        /// Where the value comes from.
        field: &'static str,
        /// The value.
        value: String,
    },
}

impl UserError {
    /// Names the field of CRI `ContainerConfig` that cannot be accepted.
    pub fn field(&self) -> &'static str {
        match self {
            Self::UnknownUser { field, .. }
            | Self::UnknownGroup { field, .. }
            | Self::GroupWithoutUser { field }
            | Self::Malformed { field, .. }
            | Self::OutOfRange { field, .. } => field,
        }
    }
}

const RUN_AS_USER: &str = "linux.security_context.run_as_user";
const RUN_AS_USERNAME: &str = "linux.security_context.run_as_username";
const RUN_AS_GROUP: &str = "linux.security_context.run_as_group";
const SUPPLEMENTAL_GROUPS: &str = "linux.security_context.supplemental_groups";
/// The user that an image names comes in with the image.
const IMAGE_USER: &str = "image";

/// Finds out who a container's process runs as.
///
/// `image_user` is the image configuration's `User`; `passwd` and `group` are the image's files, absent where the
/// image has none. A uid that passwd does not know is taken as it is, with group 0; malformed lines are skipped.
///
/// # Errors
/// Names the field of what cannot be looked up.
pub fn resolve(
    security: &Security,
    image_user: &str,
    passwd: Option<&str>,
    group: Option<&str>,
) -> Result<User, UserError> {
    let accounts = Accounts { passwd: passwd.unwrap_or_default(), group: group.unwrap_or_default() };
    let (account, group_given) = match &security.user {
        RunAs::Uid(uid) => (accounts.by_uid(check(*uid, RUN_AS_USER)?), None),
        RunAs::Name(name) => (accounts.by_word(name, RUN_AS_USERNAME)?, None),
        RunAs::Image if security.run_as_group.is_some() => {
            return Err(UserError::GroupWithoutUser { field: RUN_AS_GROUP });
        }
        RunAs::Image => accounts.of_image(image_user)?,
    };
    let gid = match security.run_as_group {
        Some(gid) => check(gid, RUN_AS_GROUP)?,
        None => group_given.unwrap_or(account.gid),
    };

    let mut gids = vec![gid];
    // The policy Strict is about what the image says of memberships only; the primary group stays the account's.
    if !security.strict_supplemental_groups {
        gids.extend(accounts.memberships(account.name));
    }
    for gid in &security.supplemental_groups {
        gids.push(check(*gid, SUPPLEMENTAL_GROUPS)?);
    }
    let mut additional_gids = Vec::with_capacity(gids.len());
    for gid in gids {
        if !additional_gids.contains(&gid) {
            additional_gids.push(gid);
        }
    }
    Ok(User { uid: account.uid, gid, additional_gids, home: account.home.map(str::to_owned) })
}

/// The image's two files.
struct Accounts<'a> {
    passwd: &'a str,
    group: &'a str,
}

/// A line of passwd, or what stands for one that is not there.
#[derive(Clone, Copy)]
struct Account<'a> {
    name: Option<&'a str>,
    uid: u32,
    gid: u32,
    home: Option<&'a str>,
}

impl<'a> Accounts<'a> {
    /// Reads an image's `user[:group]`; an empty part means the default.
    fn of_image(&self, value: &str) -> Result<(Account<'a>, Option<u32>), UserError> {
        let (user, group) = match value.split_once(':') {
            Some((_, group)) if group.contains(':') => {
                return Err(UserError::Malformed { field: IMAGE_USER, value: value.to_owned() });
            }
            Some((user, group)) => (user, group),
            None => (value, ""),
        };
        let account = if user.is_empty() { self.by_uid(0) } else { self.by_word(user, IMAGE_USER)? };
        let gid = match group {
            "" => None,
            group => Some(self.gid_of(group, IMAGE_USER)?),
        };
        Ok((account, gid))
    }

    /// Looks up a word that is a number or a name. A number wins even where passwd has a user of that name, so that
    /// an image cannot give the uid that was asked for another meaning.
    fn by_word(&self, word: &str, field: &'static str) -> Result<Account<'a>, UserError> {
        if let Some(uid) = number(word, field)? {
            return Ok(self.by_uid(uid));
        }
        self.users()
            .find(|account| account.name == Some(word))
            .ok_or_else(|| UserError::UnknownUser { field, name: word.to_owned() })
    }

    fn by_uid(&self, uid: u32) -> Account<'a> {
        let nameless = Account { name: None, uid, gid: 0, home: None };
        self.users().find(|account| account.uid == uid).unwrap_or(nameless)
    }

    fn gid_of(&self, word: &str, field: &'static str) -> Result<u32, UserError> {
        if let Some(gid) = number(word, field)? {
            return Ok(gid);
        }
        self.groups()
            .find(|(name, ..)| *name == word)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| UserError::UnknownGroup { field, name: word.to_owned() })
    }

    /// Returns the groups that list `user` as a member, in the file's order.
    fn memberships(&self, user: Option<&'a str>) -> impl Iterator<Item = u32> {
        self.groups()
            .filter(move |(.., members)| members.split(',').any(|member| Some(member) == user))
            .map(|group| group.1)
    }

    /// Reads `name:password:uid:gid:comment:home:shell` lines.
    fn users(&self) -> impl Iterator<Item = Account<'a>> + use<'a> {
        self.passwd.lines().filter_map(|line| {
            let mut columns = line.split(':');
            let name = columns.next().filter(|name| !name.is_empty())?;
            let uid = id(columns.nth(1)?)?;
            let gid = id(columns.next()?)?;
            let home = columns.nth(1).filter(|home| !home.is_empty());
            Some(Account { name: Some(name), uid, gid, home })
        })
    }

    /// Reads `name:password:gid:members` lines.
    fn groups(&self) -> impl Iterator<Item = (&'a str, u32, &'a str)> + use<'a> {
        self.group.lines().filter_map(|line| {
            let mut columns = line.split(':');
            let name = columns.next().filter(|name| !name.is_empty())?;
            let gid = id(columns.nth(1)?)?;
            Some((name, gid, columns.next().unwrap_or_default()))
        })
    }
}

/// Reads a column that holds an id.
fn id(column: &str) -> Option<u32> {
    column.parse().ok().filter(|id| *id != NO_ID)
}

/// Tells a number from a name; a number too large for an id is an error, not a name.
fn number(word: &str, field: &'static str) -> Result<Option<u32>, UserError> {
    if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match id(word) {
        Some(id) => Ok(Some(id)),
        None => Err(UserError::OutOfRange { field, value: word.to_owned() }),
    }
}

fn check(id: u32, field: &'static str) -> Result<u32, UserError> {
    if id == NO_ID { Err(UserError::OutOfRange { field, value: id.to_string() }) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        :x:7:7::/:\n\
        web:x:33:44:Web:/srv:/bin/false\n\
        1000:x:2000:2000::/trap:\n\
        odd:x:notanumber:1:::\n\
        bare:x:50:51\n";
    const GROUP: &str = "root:x:0:root\n\
        web:x:44:\n\
        logs:x:90:alice,web\n\
        :x:91:web\n\
        huge:x:4294967295:web\n\
        certs:x:92:web,web\n\
        audio:x:29:bob\n";

    fn resolved(security: &Security, image: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(security, image, Some(PASSWD), Some(GROUP)).map(|user| (user.uid, user.gid, user.additional_gids))
    }

    fn uid(uid: u32) -> Security {
        Security { user: RunAs::Uid(uid), ..Security::default() }
    }

    fn name(name: &str) -> Security {
        Security { user: RunAs::Name(name.to_owned()), ..Security::default() }
    }

    #[test]
    fn the_image_names_the_user_when_the_request_does_not() {
        let none = Security::default();
        for (image, want) in [
            ("", (0, 0, vec![0])),
            ("0", (0, 0, vec![0])),
            ("web", (33, 44, vec![44, 90, 92])),
            ("33", (33, 44, vec![44, 90, 92])),
            ("web:logs", (33, 90, vec![90, 92])),
            ("web:7", (33, 7, vec![7, 90, 92])),
            ("33:audio", (33, 29, vec![29, 90, 92])),
            ("500:600", (500, 600, vec![600])),
            ("500", (500, 0, vec![0])),
            ("web:", (33, 44, vec![44, 90, 92])),
            (":audio", (0, 29, vec![29, 0])),
            ("1000", (1000, 0, vec![0])),
            ("bare", (50, 51, vec![51])),
        ] {
            assert_eq!(resolved(&none, image), Ok(want), "{image:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        assert_eq!(resolved(&uid(500), "web:logs"), Ok((500, 0, vec![0])));
        assert_eq!(resolved(&uid(33), "root"), Ok((33, 44, vec![44, 90, 92])));
        assert_eq!(resolved(&name("web"), "root"), Ok((33, 44, vec![44, 90, 92])));
        assert_eq!(resolved(&name("33"), ""), Ok((33, 44, vec![44, 90, 92])));
        assert_eq!(resolved(&Security { run_as_group: Some(8), ..uid(33) }, ""), Ok((33, 8, vec![8, 90, 92])));
    }

    #[test]
    fn supplemental_groups_come_last_and_once() {
        let groups = vec![5, 90, 44, 5];
        let merged = Security { supplemental_groups: groups.clone(), ..uid(33) };
        assert_eq!(resolved(&merged, ""), Ok((33, 44, vec![44, 90, 92, 5])));
        let strict = Security { strict_supplemental_groups: true, ..merged };
        assert_eq!(resolved(&strict, ""), Ok((33, 44, vec![44, 5, 90])));
    }

    #[test]
    fn what_cannot_be_looked_up_is_named_with_its_field() {
        let none = Security::default();
        let cases = [
            (resolved(&none, "ghost"), IMAGE_USER, "no user \"ghost\""),
            (resolved(&none, "web:ghosts"), IMAGE_USER, "no group \"ghosts\""),
            (resolved(&none, "a:b:c"), IMAGE_USER, "user[:group]"),
            (resolved(&none, "99999999999"), IMAGE_USER, "99999999999 is no id"),
            (resolved(&name("ghost"), ""), RUN_AS_USERNAME, "no user \"ghost\""),
            (resolved(&uid(NO_ID), ""), RUN_AS_USER, "4294967295 is no id"),
            (resolved(&Security { run_as_group: Some(1), ..none.clone() }, "web"), RUN_AS_GROUP, "run_as_user"),
            (resolved(&Security { run_as_group: Some(NO_ID), ..uid(1) }, ""), RUN_AS_GROUP, "is no id"),
            (resolved(&Security { supplemental_groups: vec![NO_ID], ..none }, ""), SUPPLEMENTAL_GROUPS, "is no id"),
        ];
        for (result, field, words) in cases {
            let error = result.unwrap_err();
            assert_eq!(error.field(), field);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn an_image_without_files_runs_by_number_only() {
        let user = resolve(&uid(12), "", None, None).unwrap();
        assert_eq!(user, User { uid: 12, gid: 0, additional_gids: vec![0], home: None });
        assert!(resolve(&name("root"), "", None, None).is_err());
    }

    #[test]
    fn the_home_is_passwds() {
        let home = |image| resolve(&Security::default(), image, Some(PASSWD), None).unwrap().home;
        assert_eq!(home("web").as_deref(), Some("/srv"));
        assert_eq!(home("").as_deref(), Some("/root"));
        assert_eq!(home("50"), None);
    }

    proptest! {
        /// Files are the image author's: any text is read without a panic, and a well-formed line is found among it.
        #[test]
        fn any_text_around_a_good_line_is_skipped(before in "[^\n]{0,40}", after in "\\PC{0,40}", uid in 1..NO_ID, gid in 0..NO_ID) {
            let passwd = format!("{before}\nsomeone:x:{uid}:{gid}::/home/s:/bin/sh\n{after}");
            let group = format!("{before}\nfriends:x:77:other,someone\n{after}");
            prop_assume!(!before.starts_with("someone:"));
            let user = resolve(&name("someone"), "", Some(&passwd), Some(&group)).unwrap();
            prop_assert_eq!((user.uid, user.gid), (uid, gid));
            prop_assert_eq!(user.additional_gids[0], gid);
            prop_assert!(user.additional_gids.contains(&77));
        }

        #[test]
        fn no_input_panics(image in "\\PC{0,20}", passwd in "[a-z:0-9\n,]{0,80}", group in "[a-z:0-9\n,]{0,80}") {
            if let Ok(user) = resolve(&Security::default(), &image, Some(&passwd), Some(&group)) {
                prop_assert_eq!(user.additional_gids[0], user.gid);
            }
        }
    }
}
