// lease list | release: what sidecars hold in stock of accounts.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct LeaseCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "lease",
    abstract: "What sidecars hold of accounts, to answer from memory.",
    discussion: """
      A lessee is one start of one sidecar; `tollgate status` names its own. One that is silent \
      keeps in doubt what it may have let through, until it comes back, a day has gone, or \
      somebody who knows that it is lost releases it.
      """,
    subcommands: [LeaseList.self, LeaseRelease.self], defaultSubcommand: LeaseList.self)

  /// `00a1b2c3d4e5f607 (this sidecar), live until 2026-…`.
  static func holder(_ lease: LeaseReport) -> String {
    let state =
      switch lease.state {
      case .live: "live until \(CivilDate.text(lease.until))"
      case .inDoubt: "in doubt until \(CivilDate.text(lease.until))"
      case .settling: "being settled by this sidecar"
      }
    return lease.lessee + (lease.own ? " (this sidecar)" : "") + ", " + state
  }
}

struct LeaseList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Who holds what, of one account or of all.",
    discussion: "Exit code 0: nothing is in doubt, 1: something is.")

  @Argument(help: "The account; without one, all.") var account: Subject?
  @Flag(help: "Only what is in doubt.") var inDoubt = false
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let server = try await connection.open()
    var all = LeaseListReply(time: .now, leases: [])
    var cursor: String?
    repeat {
      let request = LeaseListRequest(
        account: account, inDoubt: inDoubt ? true : nil, after: cursor)
      let page = try await server.admin(.leaseList, request, as: LeaseListReply.self).reply
      all.time = page.time
      all.leases += page.leases
      cursor = page.next
    } while cursor != nil
    await server.close()
    if output.json { Output.json(all) } else { Output.line(Self.text(of: all)) }
    try (all.leases.contains { $0.state == .inDoubt } ? ExitStatus.denied : .ok).leave()
  }

  static func text(of reply: LeaseListReply) -> String {
    guard !reply.leases.isEmpty else { return "nothing is leased" }
    var table = Table(
      .text("ACCOUNT"), .text("LESSEE"), .text("STATE"), .text("UNTIL"), .text("HOLDS"))
    for lease in reply.leases {
      table.add(
        lease.account.path, lease.lessee,
        lease.state.rawValue + (lease.own ? ", this sidecar" : ""),
        CivilDate.text(lease.until), lease.text)
    }
    return table.text
  }
}

struct LeaseRelease: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "release", abstract: "Free what a sidecar holds in doubt that is lost for good.",
    discussion: """
      What it let through and did not settle is not counted. Should it come back after all, with \
      its memory or its journal, that is charged, and a hard limit may be exceeded by it.
      """)

  @Argument(help: "The account.") var account: Subject
  @Argument(help: "The lessee, 16 hex digits, from the list.") var lessee: String
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    let request = LeaseReleaseRequest(account: account, lessee: lessee, change: options)
    try await Changing.run(.leaseRelease, request, options, connection, output)
  }
}
