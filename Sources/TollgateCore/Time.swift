// Two clocks, two types. A wall time decides windows and is judged by Redis `TIME`; a monotonic
// time decides deadlines. Mixing them up is a compile error. Only the shell reads clocks; the
// core and the machines are handed values.

/// Milliseconds since 1970-01-01T00:00:00Z.
public struct WallTime: Hashable, Comparable, Sendable, Codable {
  public var milliseconds: Int64

  public init(milliseconds: Int64) { self.milliseconds = milliseconds }

  public init(from decoder: any Decoder) throws {
    milliseconds = try decoder.singleValueContainer().decode(Int64.self)
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(milliseconds)
  }

  public static func < (a: Self, b: Self) -> Bool { a.milliseconds < b.milliseconds }
  public static func + (a: Self, b: Int64) -> Self { Self(milliseconds: a.milliseconds &+ b) }
  public static func - (a: Self, b: Self) -> Int64 { a.milliseconds &- b.milliseconds }
}

/// Nanoseconds on a clock that never goes back and has no meaning outside this process.
public struct MonotonicTime: Hashable, Comparable, Sendable {
  public var nanoseconds: Int64

  public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

  public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
  public static func + (a: Self, b: Int64) -> Self { Self(nanoseconds: a.nanoseconds &+ b) }
  public static func - (a: Self, b: Self) -> Int64 { a.nanoseconds &- b.nanoseconds }
}
