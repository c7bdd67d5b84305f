// Operation ids, the stable hash, and the buckets built on it. The golden values were computed
// outside this code base's language: a change of any of them would move every account.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct OperationTests {
  @Test func anIDCarriesItsTimeInItsFirst48Bits() {
    var random = SeededRandom(seed: 1)
    let time = WallTime(milliseconds: 1_795_237_200_123)
    let id = OperationID(time: time, using: &random)
    #expect(id.time == time)
    #expect(id.hex.count == 32)
    #expect(OperationID(hex: id.hex) == id)
    #expect(OperationID(hex: id.hex.uppercased()) == id)
  }

  @Test func laterIDsSortLater() {
    var random = SeededRandom(seed: 2)
    var last = OperationID(time: WallTime(milliseconds: 0), using: &random)
    for milliseconds in stride(from: Int64(1), to: 1 << 47, by: 1 << 40) {
      let id = OperationID(time: WallTime(milliseconds: milliseconds), using: &random)
      #expect(last < id)
      #expect(last.hex < id.hex)
      last = id
    }
  }

  @Test(arguments: [
    "", "0", String(repeating: "0", count: 31), String(repeating: "0", count: 33),
    String(repeating: "g", count: 32), "-" + String(repeating: "0", count: 31),
  ])
  func otherTextIsNoID(_ text: String) { #expect(OperationID(hex: text) == nil) }

  @Test(
    arguments: [
      ("", 0xEFD0_1F60_BA99_2926), ("a", 0x82A2_A958_A9BE_CE5B), ("acme", 0x3A25_B665_6BA9_CFC6),
      ("account-1", 0x4EA9_6E94_7D43_B847), ("user@example.com", 0x98E1_0665_127C_C93E),
    ] as [(String, UInt64)])
  func theHashHasItsGoldenValues(_ text: String, _ value: UInt64) {
    #expect(StableHash.of(text) == value)
    #expect(BucketMap(buckets: 64).bucket(ofAccount: text) == Int(value % 64))
  }

  @Test(arguments: [
    ("123456789", 12739), ("foo", 12182), ("bar", 5061), ("hello", 866), ("somekey", 11058),
  ])
  func slotsAreThoseOfRedisCluster(_ tag: String, _ slot: Int) {
    #expect(BucketMap.slot(ofTag: tag) == slot)
  }

  @Test(arguments: [1, 2, 3, 16, 64, 1000, 1024, 4095, 4096])
  func bucketSlotsAreEvenlySpaced(_ buckets: Int) {
    let map = BucketMap(buckets: buckets)
    #expect(map.tags.count == buckets + 1)
    #expect(Set(map.tags).count == buckets + 1)
    for (bucket, tag) in map.tags.enumerated() {
      #expect(BucketMap.slot(ofTag: tag) == bucket * BucketMap.slots / (buckets + 1))
    }
    #expect(map.control == buckets)
  }

  @Test func tagsAreStable() {
    #expect(BucketMap(buckets: 4).tags == BucketMap(buckets: 4).tags)
    // Each tag is the smallest number with its slot, so it cannot depend on how it was found.
    let map = BucketMap(buckets: 16)
    for tag in map.tags {
      let number = Int(tag) ?? -1
      let slot = BucketMap.slot(ofTag: tag)
      let smaller = (0..<number).first { BucketMap.slot(ofTag: String($0)) == slot }
      #expect(smaller == nil)
    }
  }

  @Test func accountsSpreadEvenlyOverBuckets() {
    let map = BucketMap(buckets: 64)
    var counts = [Int](repeating: 0, count: 64)
    for account in 0..<64_000 { counts[map.bucket(ofAccount: "account-\(account)")] += 1 }
    #expect(counts.allSatisfy { (800...1200).contains($0) })
  }

  @Test func aDeploymentNamesEveryDifference() throws {
    let ours = Deployment(id: try Name("prod"), buckets: 64, mode: .prod)
    var theirs = ours
    #expect(ours.differences(from: theirs).isEmpty)
    theirs.buckets = 32
    theirs.hash = "other"
    theirs.keyVersion = 9
    theirs.mode = .dev
    theirs.id = try Name("stage")
    #expect(
      ours.differences(from: theirs).map(\.description) == [
        "deployment: configured prod, recorded stage", "buckets: configured 64, recorded 32",
        "hash: configured fnv1a64m, recorded other", "keyVersion: configured 1, recorded 9",
        "mode: configured prod, recorded dev",
      ])
  }
}
