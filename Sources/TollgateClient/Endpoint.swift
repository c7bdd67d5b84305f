// Where a sidecar listens.

/// The address of a sidecar: a Unix socket, or a host and a port.
///
/// The text form is `unix:/path/to/socket` or `host:port`; an IPv6 address stands in brackets,
/// `[::1]:7300`.
public struct Endpoint: Hashable, Sendable, CustomStringConvertible {
  enum Address: Hashable, Sendable {
    case unix(path: String)
    case tcp(host: String, port: Int)
  }

  let address: Address

  private init(_ address: Address) { self.address = address }

  /// A sidecar behind a Unix socket. `path` is absolute or relative to the working directory, and
  /// at most about 100 bytes long: the system's own limit.
  public static func unix(_ path: String) -> Endpoint { Endpoint(.unix(path: path)) }

  /// A sidecar behind TCP. `host` is an address or a name; `port` is 1 … 65535.
  public static func tcp(host: String, port: Int) -> Endpoint {
    Endpoint(.tcp(host: host, port: port))
  }

  /// Reads the text form.
  public init(_ text: String) throws(InvalidEndpoint) {
    if text.hasPrefix("unix:") {
      let path = text.dropFirst(5)
      guard !path.isEmpty else { throw InvalidEndpoint(text: text, reason: "names no path") }
      self.init(.unix(path: String(path)))
      return
    }
    guard let colon = text.lastIndex(of: ":") else {
      throw InvalidEndpoint(text: text, reason: "is neither unix:PATH nor HOST:PORT")
    }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
    guard !host.isEmpty else { throw InvalidEndpoint(text: text, reason: "names no host") }
    guard let port = Int(text[text.index(after: colon)...]), (1...65535).contains(port) else {
      throw InvalidEndpoint(text: text, reason: "the port is not a number from 1 to 65535")
    }
    self.init(.tcp(host: String(host), port: port))
  }

  /// The text form.
  public var description: String {
    switch address {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
  }
}

/// A text that is no endpoint, and why.
public struct InvalidEndpoint: Error, Hashable, Sendable, CustomStringConvertible {
  /// The text as it was given.
  public let text: String
  /// What is wrong with it, as the end of a sentence about it.
  public let reason: String

  /// `"text" reason`.
  public var description: String { "\"\(text)\" \(reason)" }
}
