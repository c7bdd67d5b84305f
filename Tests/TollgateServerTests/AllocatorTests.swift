// That the allocator that is asked is the one that gives, that it knows what it is told, and that
// what was freed goes back to the system when it is asked for.

import Foundation
import Testing
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct AllocatorTests {
  private func residentMegabytes() throws -> Int {
    let text = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8)
    let pages = try #require(text.split(separator: " ").dropFirst().first.flatMap { Int($0) })
    return (pages * sysconf(Int32(_SC_PAGESIZE))) >> 20
  }

  @Test func whatSwiftIsGivenIsGivenByIt() throws {
    let before = try #require(Allocator.givenToThisThread)
    let bytes = [UInt8](repeating: 1, count: 1 << 20)
    let after = try #require(Allocator.givenToThisThread)
    #expect(after - before >= UInt64(bytes.count))
  }

  @Test func itKnowsWhatItIsTold() {
    #expect(Allocator.unknown(inBackground: true) == [])
    #expect(Allocator.unknown(inBackground: false) == [])
  }

  /// In small pieces, which the allocator keeps for a while. Other tests run beside it and come and
  /// go: far more than they take.
  @Test func whatWasFreedGoesBack() throws {
    let megabytes = 512
    var blocks: [[UInt8]] = []
    for number in 0..<megabytes << 10 {
      blocks.append(Array(repeating: UInt8(truncatingIfNeeded: number), count: 900))
    }
    let full = try residentMegabytes()
    blocks = []
    Allocator.giveBack()
    let after = try residentMegabytes()
    #expect(full - after > megabytes / 2, "\(full) MB, then \(after) MB")
  }
}
