// One installation, and how its accounts fall into buckets. The deployment record stands in Redis
// and in the ledger; any difference refuses to start and names both values, because a silent
// difference would move every account to another counter.

public struct Deployment: Hashable, Sendable, Codable {
  public enum Mode: String, Sendable, Codable, CaseIterable { case dev, prod }

  /// The version of the key layout (proto/KEYS.md).
  public static let keyVersion = 1
  public static let bucketsMax = 4096

  public var id: Name
  public var buckets: Int
  public var hash: String
  public var keyVersion: Int
  public var mode: Mode

  public init(id: Name, buckets: Int, mode: Mode) {
    self.id = id
    self.buckets = buckets
    self.hash = StableHash.name
    self.keyVersion = Self.keyVersion
    self.mode = mode
  }

  public struct Difference: Hashable, Sendable, CustomStringConvertible {
    public let field: String
    public let ours: String
    public let theirs: String

    public var description: String { "\(field): configured \(ours), recorded \(theirs)" }
  }

  /// Every field in which a recorded deployment differs from this one.
  public func differences(from recorded: Deployment) -> [Difference] {
    func one(_ field: String, _ ours: String, _ theirs: String) -> Difference? {
      ours == theirs ? nil : Difference(field: field, ours: ours, theirs: theirs)
    }
    return [
      one("deployment", id.text, recorded.id.text),
      one("buckets", "\(buckets)", "\(recorded.buckets)"),
      one("hash", hash, recorded.hash),
      one("keyVersion", "\(keyVersion)", "\(recorded.keyVersion)"),
      one("mode", mode.rawValue, recorded.mode.rawValue),
    ].compactMap { $0 }
  }
}

/// account → bucket → Redis hash tag. The tags are the smallest decimal numbers whose cluster
/// slots are evenly spaced over the 16,384, so that a cluster of any size gets its share. Bucket
/// `buckets` (one past the last) is the control bucket: catalog, bypasses, their audit.
public struct BucketMap: Sendable {
  public static let slots = 16384
  public let buckets: Int
  /// `buckets + 1` tags; the last is the control bucket's.
  public let tags: [String]

  public init(buckets: Int) {
    precondition(buckets >= 1 && buckets <= Deployment.bucketsMax)
    self.buckets = buckets
    var wanted: [Int: [Int]] = [:]
    for bucket in 0...buckets {
      wanted[bucket * Self.slots / (buckets + 1), default: []].append(bucket)
    }
    var tags = [String](repeating: "", count: buckets + 1)
    var missing = buckets + 1
    var candidate = 0
    while missing > 0 {
      let tag = String(candidate)
      if let owners = wanted.removeValue(forKey: Self.slot(ofTag: tag)) {
        for owner in owners { tags[owner] = tag }
        missing -= owners.count
      }
      candidate += 1
    }
    self.tags = tags
  }

  public var control: Int { buckets }

  public func bucket(ofAccount account: String) -> Int {
    Int(StableHash.of(account) % UInt64(buckets))
  }

  /// CRC16/XMODEM mod 16384, as Redis Cluster computes it over the text between the braces.
  public static func slot(ofTag tag: String) -> Int {
    var crc: UInt16 = 0
    for byte in tag.utf8 {
      crc ^= UInt16(byte) << 8
      for _ in 0..<8 { crc = crc & 0x8000 != 0 ? crc << 1 ^ 0x1021 : crc << 1 }
    }
    return Int(crc) % slots
  }
}
