//! Python's `datetime.now().strftime(format)`.

use crate::error::{Error, Result};

/// A date and a time of day, without time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Year, from 1.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, from 1.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute.
    pub minute: u32,
    /// Second.
    pub second: u32,
    /// Microsecond.
    pub microsecond: u32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

impl DateTime {
    /// Days since 1970-01-01.
    fn days(self) -> i64 {
        let before = |year: i64| 365 * (year - 1) + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
        before(self.year) - before(1970) + self.day_of_year()
    }

    /// Day of the year, from 0.
    fn day_of_year(self) -> i64 {
        let months = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let leap_day = i64::from(self.month > 2 && is_leap(self.year));
        months[(self.month as usize).clamp(1, 12) - 1] + i64::from(self.day) - 1 + leap_day
    }

    /// Day of the week, from Sunday.
    fn weekday(self) -> i64 {
        (self.days() + 4).rem_euclid(7)
    }

    /// Year and week of ISO 8601.
    fn iso_week(self) -> (i64, i64) {
        let from_monday = (self.weekday() + 6) % 7;
        let week = (self.day_of_year() - from_monday + 10) / 7;
        let weeks_of = |year: i64| {
            let first = DateTime { year, month: 1, day: 1, ..self }.weekday();
            if first == 4 || (first == 3 && is_leap(year)) { 53 } else { 52 }
        };
        match week {
            0 => (self.year - 1, weeks_of(self.year - 1)),
            53 if weeks_of(self.year) < 53 => (self.year + 1, 1),
            week => (self.year, week),
        }
    }

    /// Formats the time as `strftime` of Python on Linux in the C locale, where it has no time zone.
    ///
    /// # Errors
    /// If a directive does not exist.
    pub(crate) fn format(self, format: &str) -> Result<String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let mut flag = None;
            while let Some(found @ ('-' | '_' | '0' | '^' | '#')) = directive {
                flag = Some(found);
                directive = chars.next();
            }
            let Some(directive) = directive else {
                out.push('%');
                out.extend(flag);
                break;
            };
            let text = self.directive(directive, flag)?;
            out += &if flag == Some('^') { text.to_uppercase() } else { text };
        }
        Ok(out)
    }

    fn directive(self, directive: char, flag: Option<char>) -> Result<String> {
        let padded = |value: i64, width: usize, fill: char| match flag {
            Some('-') => value.to_string(),
            Some('_') => format!("{value:>width$}"),
            Some('0') => format!("{value:0>width$}"),
            _ if fill == ' ' => format!("{value:>width$}"),
            _ => format!("{value:0>width$}"),
        };
        let two = |value: i64| padded(value, 2, '0');
        let hour12 = i64::from((self.hour + 11) % 12 + 1);
        let (hour, minute, second) = (self.hour.into(), self.minute.into(), self.second.into());
        let weekday = self.weekday();
        let day_name = DAYS[weekday as usize];
        let month_name = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let swapped = |text: &str| if flag == Some('#') { text.to_uppercase() } else { text.to_string() };
        Ok(match directive {
            'a' => swapped(&day_name[..3]),
            'A' => swapped(day_name),
            'b' | 'h' => swapped(&month_name[..3]),
            'B' => swapped(month_name),
            'c' => self.format("%a %b %e %H:%M:%S %Y")?,
            'C' => two(self.year / 100),
            'd' => two(self.day.into()),
            'D' | 'x' => self.format("%m/%d/%y")?,
            'e' => padded(self.day.into(), 2, ' '),
            'f' => format!("{:06}", self.microsecond),
            'F' => self.format("%Y-%m-%d")?,
            'g' => two(self.iso_week().0 % 100),
            'G' => padded(self.iso_week().0, 4, '0'),
            'H' => two(hour),
            'I' => two(hour12),
            'j' => padded(self.day_of_year() + 1, 3, '0'),
            'k' => padded(hour, 2, ' '),
            'l' => padded(hour12, 2, ' '),
            'm' => two(self.month.into()),
            'M' => two(minute),
            'n' => "\n".into(),
            'p' if flag == Some('#') => half.to_lowercase(),
            'p' => half.into(),
            'P' => half.to_lowercase(),
            'r' => self.format("%I:%M:%S %p")?,
            'R' => self.format("%H:%M")?,
            'S' => two(second),
            't' => "\t".into(),
            'T' | 'X' => self.format("%H:%M:%S")?,
            'u' => if weekday == 0 { 7 } else { weekday }.to_string(),
            'U' => two((self.day_of_year() + 7 - weekday) / 7),
            'V' => two(self.iso_week().1),
            'w' => weekday.to_string(),
            'W' => two((self.day_of_year() + 7 - (weekday + 6) % 7) / 7),
            'y' => two(self.year.rem_euclid(100)),
            'Y' => padded(self.year, if flag.is_some() { 4 } else { 1 }, '0'),
            'z' | 'Z' => String::new(),
            '%' => "%".into(),
            's' => {
                return Err(Error::new("strftime_now: `%s` depends on the time zone and is not supported"));
            }
            other => return Err(Error::new(format!("strftime_now: unknown directive `%{other}`"))),
        })
    }
}
