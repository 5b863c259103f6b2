//! Sizes, rates and times as people write them. Pure.

/// `1.4 MiB`.
#[must_use]
pub fn size(octets: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if octets < 1024 {
        return format!("{octets} B");
    }
    // Tenths of the unit, in whole numbers: exact for every size.
    let mut tenths = u128::from(octets) * 10 / 1024;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = larger;
    }
    if tenths < 1000 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

/// `111 MiB/s`; nothing for what was too short to measure.
#[must_use]
pub fn rate(octets: u64, milliseconds: u64) -> Option<String> {
    let per_second = u128::from(octets) * 1000 / u128::from(milliseconds.max(1));
    (milliseconds >= 20)
        .then(|| format!("{}/s", size(u64::try_from(per_second).unwrap_or(u64::MAX))))
}

/// `0.3 s`, `12 s`, `2 min 5 s`, `1 h 30 min`, `12 h`.
#[must_use]
pub fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let with = |first: u64, one: &str, second: u64, two: &str| match second {
        0 => format!("{first} {one}"),
        _ => format!("{first} {one} {second} {two}"),
    };
    match seconds {
        0..10 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => with(seconds / 60, "min", seconds % 60, "s"),
        _ => with(seconds / 3600, "h", seconds / 60 % 60, "min"),
    }
}

/// `UDP 67, 69, 4011 and TCP 64172`.
#[must_use]
pub fn ports(udp: &[u16], tcp: &[u16]) -> String {
    let list = |protocol: &str, ports: &[u16]| {
        let numbers: Vec<_> = ports.iter().map(u16::to_string).collect();
        (!numbers.is_empty()).then(|| format!("{protocol} {}", numbers.join(", ")))
    };
    match (list("UDP", udp), list("TCP", tcp)) {
        (Some(udp), Some(tcp)) => format!("{udp} and {tcp}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "no port".to_owned(),
    }
}

/// Seconds since 1970 as `2026-11-22 10:22:05`, in UTC.
#[must_use]
pub fn timestamp(seconds: u64) -> String {
    // Years are counted from 1 March, so that the leap day is the last of its year, in eras of
    // 400 years, each 146,097 days long. 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let day = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (octets, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1023 KiB"),
            (1_048_576, "1.0 MiB"),
            (886_046_720, "845 MiB"),
            (4_294_967_296, "4.0 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(size(octets), text);
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate(1_048_576, 1000).as_deref(), Some("1.0 MiB/s"));
        assert_eq!(rate(1_048_576, 100).as_deref(), Some("10.0 MiB/s"));
        assert_eq!(rate(500, 3), None);
        assert_eq!(rate(500, 0), None);
    }

    #[test]
    fn times() {
        for (milliseconds, text) in [
            (0, "0.0 s"),
            (9_999, "9.9 s"),
            (10_000, "10 s"),
            (60_000, "1 min"),
            (125_000, "2 min 5 s"),
            (5_400_000, "1 h 30 min"),
            (43_200_000, "12 h"),
        ] {
            assert_eq!(time(milliseconds), text);
        }
    }

    #[test]
    fn timestamps() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (784_111_777, "1994-11-06 08:49:37"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_704_067_199, "2023-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn lists_of_ports() {
        assert_eq!(ports(&[67, 69, 4011], &[64172]), "UDP 67, 69, 4011 and TCP 64172");
        assert_eq!(ports(&[], &[80]), "TCP 80");
        assert_eq!(ports(&[], &[]), "no port");
    }
}
