// That the text of the program leaves memory when it is let go, and that the program goes on.

import Testing
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct ProgramTextTests {
  private var resident: Int { ProgramText.mapped().reduce(0) { $0 + $1.resident } }

  /// Other tests run beside it, and touch what they need again: not so much so soon.
  @Test func whatWasRunOnceIsLetGo() {
    let before = resident
    #expect(before > 4 << 20, "\(before) bytes")
    let bytes = ProgramText.letGo()
    let after = resident
    #expect(bytes > 4 << 20)
    #expect(after < before - before / 4, "\(before) bytes, then \(after)")
  }
}
