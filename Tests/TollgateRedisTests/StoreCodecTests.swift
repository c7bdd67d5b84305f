// The small encodings of the store, each against Redis itself where it has an opinion, and the
// document of the keys against the code.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct StoreCodecTests {
  @Test func theSHA1IsRediss() throws {
    // FIPS 180-1's examples, and one that crosses a block in its padding.
    #expect(SHA1.hex(Array("abc".utf8)) == "a9993e364706816aba3e25717850c26c9cd0d89d")
    #expect(SHA1.hex([]) == "da39a3ee5e6b4b0d3255bfef95601890afd80709")
    let server = try RedisServerProcess()
    let redis = try server.connect()
    for length in [1, 54, 55, 56, 63, 64, 65, 1000] {
      let source = "return '" + String(repeating: "x", count: length) + "'"
      #expect(
        try redis.command("SCRIPT", "LOAD", source).string == SHA1.hex(Array(source.utf8)))
    }
  }

  @Test func integersOfAnySizePassThroughLuaExactly() throws {
    let server = try RedisServerProcess()
    let redis = try server.connect()
    let values: [Int64] = [
      0, 1, 127, 128, 255, 256, 65535, 65536, 4_294_967_295, 4_294_967_296, Quantity.maximum, -1,
      -32, -33, -128, -129, -32769, -2_147_483_649, -Quantity.maximum,
    ]
    var writer = MessagePackWriter()
    for value in values { writer.append(value) }
    writer.append("text")
    writer.append(String(repeating: "y", count: 300))
    let reply = try redis.pipeline([
      [
        Array("EVAL".utf8),
        Array("return cmsgpack.pack(cmsgpack.unpack(ARGV[1]))".utf8), Array("0".utf8),
        writer.bytes,
      ]
    ])[0]
    var reader = MessagePackReader(try #require(reply.bytes))
    for value in values { #expect(reader.integer() == value) }
    #expect(reader.text() == "text")
    #expect(reader.text()?.count == 300)
    #expect(reader.isAtEnd)
  }

  @Test func hostileBytesAreNilAndNeverATrap() {
    for bytes in [[0xCF, 1], [0xDB, 255, 255, 255, 255], [0xC1], [0xA5, 1], [0xDA, 0]] as [[UInt8]]
    {
      var reader = MessagePackReader(bytes)
      #expect(reader.integer() == nil)
      var other = MessagePackReader(bytes)
      #expect(other.raw() == nil)
    }
    #expect(OperationRecord.decode([UInt8](repeating: 0xFF, count: 40), replayed: false) == nil)
  }

  @Test func pitfall45_keysOfABucketShareItsTag() throws {
    let keySpace = KeySpace(deployment: try Name("d"), map: BucketMap(buckets: 4))
    let subject = try Subject("acme/ann")
    let bucket = keySpace.bucket(of: subject)
    let tag = "{\(keySpace.map.tags[bucket])}"
    for key in [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, subject),
      keySpace.operations(bucket, .money, slice: 5), keySpace.owner(bucket),
      keySpace.index(bucket, account: subject.account), keySpace.audit(bucket),
    ] {
      #expect(key.hasPrefix("tg1:d:\(tag):"))
    }
  }

  /// Every function a script makes is made on every call, so what only a failure or a new member
  /// needs must stand inside its branch.
  @Test func theHotScriptMakesNoFunctionThatItDoesNotNeed() throws {
    let source = String(decoding: ScriptLibrary.shared.source(.decide), as: UTF8.self)
    let usual = try #require(source.components(separatedBy: "if fresh then\n").first)
    #expect(usual.count < source.count)
    let functions = usual.matches(of: /local function (\w+)/).map { String($0.1) }
    // `share` stands in the branch of a sliding limit.
    #expect(functions == ["clock", "int", "share"])
    for name in ScriptName.allCases {
      #expect(!String(decoding: ScriptLibrary.shared.source(name), as: UTF8.self).contains("--"))
    }
  }

  /// What an operator grants the Redis user is what KEYS.md says, so it must name every command.
  @Test func theKeyDocumentNamesEveryCommandAndNumber() throws {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let document = try String(
      contentsOf: root.appending(path: "proto/KEYS.md"), encoding: .utf8)
    let granted = try #require(document.components(separatedBy: "Redis user needs").last)
    let options: Set<Substring> = [
      "MAXLEN", "MINID", "STREAM", "ENTRIESADDED", "BYSCORE", "LIMIT", "WITHSCORES", "ERR",
      "COUNT", "PXAT",
    ]
    var commands: Set<Substring> = []
    for name in ScriptName.allCases {
      let source = String(decoding: ScriptLibrary.shared.source(name), as: UTF8.self)
      for match in source.matches(of: /'([A-Z]{3,})'/) { commands.insert(match.1) }
    }
    #expect(commands.count > 15)
    for command in commands.subtracting(options) {
      #expect(granted.contains(command + ",") || granted.contains(command + "."), "\(command)")
    }
    #expect(OperationSlice.milliseconds == 120_000 && document.contains("120,000 ms"))
    #expect(ConfigGlobalCall.catalogsKept == 64 && document.contains("last 64 catalog"))
    #expect(document.contains("tg\(Deployment.keyVersion):<dep>:"))
  }
}
