//! URLs that contain a password: it is never printed.

use std::fmt;

use url::Url;

/// A server's URL. `Display` and `Debug` show `***` for the password.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    whole: String,
    shown: String,
}

impl SecretUrl {
    /// A URL of one of these schemes.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<Self, String> {
        let like = format!("use the form {}://user:password@host:port/name", schemes[0]);
        let mut url = Url::parse(text).map_err(|error| format!("not a valid URL ({error}); {like}"))?;
        if !schemes.contains(&url.scheme()) {
            return Err(format!("unsupported scheme {:?}; {like}", url.scheme()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("the host is missing; {like}"));
        }
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return Err(format!("the user is missing; {like}"));
        }
        // Options may contain secrets too (sslpassword).
        url.set_query(None);
        Ok(Self { whole: text.to_owned(), shown: url.into() })
    }

    /// The whole URL, to connect with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        let url = SecretUrl::parse("postgres://kyhan:hunter2@db:5432/kyhan?sslpassword=hunter2", &["postgres"]).unwrap();
        assert_eq!(url.to_string(), "postgres://kyhan:***@db:5432/kyhan");
        assert!(!format!("{url:?}").contains("hunter2"));
        assert!(url.expose().contains("hunter2"));
    }

    #[test]
    fn what_is_no_such_url_is_refused_without_repeating_it() {
        for wrong in ["hunter2", "mysql://kyhan:hunter2@db/kyhan", "postgres:///kyhan"] {
            let why = SecretUrl::parse(wrong, &["postgres"]).unwrap_err();
            assert!(why.contains("postgres://user:password@host:port/name") && !why.contains("hunter2"), "{why}");
        }
    }
}
