package config

import "time"

// The tables in this file are shared with other services: keys that are not known here belong to them.

// Databases are the connections to MongoDB.
type Databases struct {
	// How much the database layer logs; 0 is nothing, 1 slow operations.
	Verbose int `toml:"verbose" default:"1"`
	// Operations slower than this are logged.
	SlowThreshold time.Duration `toml:"slowThreshold" default:"2" unit:"s"`
	// Where transcripts are kept.
	Chat Database `toml:"chat"`
}

// Database is one MongoDB.
type Database struct {
	// Connection string, as mongodb://user:password@host/chat. Required; a database named in it wins over "chat".
	URI Secret `toml:"uri"`
}

// ConnectionSources are storage accounts.
type ConnectionSources struct {
	// Accounts that userupload refers to by name.
	S3Providers []S3Provider `toml:"s3_providers"`
}

// S3Provider is one account.
type S3Provider struct {
	// Name that storage targets refer to.
	Name string `toml:"name"`
	// Host of the service; https where no scheme is given.
	Endpoint string `toml:"endpoint"`
	// Access key.
	Key Secret `toml:"key"`
	// Secret key.
	Pass Secret `toml:"pass"`
	// Region, where the service has any.
	Region string `toml:"region"`
}

// UserUpload is where files go.
type UserUpload struct {
	// Name of the installation, part of stored paths.
	Site string `toml:"site"`
	// Kinds of uploads.
	Types []UploadType `toml:"types"`
}

// UploadType is one kind of upload.
type UploadType struct {
	// Name of the kind.
	EntryName string `toml:"entryName"`
	// Start of the paths under which files are stored.
	Prefix string `toml:"prefix"`
	// Directory for files on their way. Empty: the system's.
	TmpPath string `toml:"tmpPath"`
	// Largest file. Units are powers of 1024.
	MaxSize Size `toml:"maxSize" default:"100MB"`
	// Where files go: written to all, read from the first that answers.
	Storage []Storage `toml:"storage"`
}

// Storage is one place for files.
type Storage struct {
	// Kind of place: s3 or local.
	Type string `toml:"type"`
	// For s3: name of an entry in connection_sources.s3_providers.
	Target string `toml:"target"`
	// For s3: bucket.
	Bucket string `toml:"bucket"`
	// For local: directory.
	Path string `toml:"path"`
}

// Mail is how mail leaves.
type Mail struct {
	// Name of the sender where an engine has none.
	DefaultFromName string `toml:"defaultFromName"`
	// Address for replies.
	ReplyToEmail string `toml:"replyToEmail"`
	// Address of the operator, told of every alert.
	AdminEmail string `toml:"adminEmail"`
	// Ways to send, tried in order.
	Engines MailEngines `toml:"engines"`
}

// MailEngines are the ways to send mail.
type MailEngines struct {
	// Amazon SES accounts.
	SES []SES `toml:"ses"`
	// SMTP servers.
	SMTP []SMTP `toml:"smtp"`
	// Engines that only log, for tests.
	Mock []MailMock `toml:"mock"`
}

// SES is an Amazon SES account.
type SES struct {
	// Name in logs.
	Name string `toml:"name"`
	// Access key id.
	AccessKeyID Secret `toml:"accessKeyId"`
	// Secret access key.
	SecretAccessKey Secret `toml:"secretAccessKey"`
	// Region of the account.
	Region string `toml:"region"`
	// Sender address.
	From string `toml:"from"`
	// Sender name.
	FromName string `toml:"fromName"`
}

// SMTP is a mail server.
type SMTP struct {
	// Name in logs.
	Name string `toml:"name"`
	// Host of the server.
	Host string `toml:"host"`
	// Port; 587 is submission with STARTTLS.
	Port int `toml:"port" default:"587"`
	// Login name. Empty: no login.
	User string `toml:"user"`
	// Password.
	Pass Secret `toml:"pass"`
	// Sender address.
	From string `toml:"from"`
}

// MailMock is an engine that only logs.
type MailMock struct {
	// Name in logs.
	Name string `toml:"name"`
}

// SMS is how text messages leave.
type SMS struct {
	// Service: twilio. Empty: none.
	Provider string `toml:"provider"`
	// Account.
	AccountSID string `toml:"accountSID"`
	// Token of the account.
	AuthToken Secret `toml:"authToken"`
	// Number that messages come from.
	FromNumber string `toml:"fromNumber"`
}

// Notification is who is told of what.
type Notification struct {
	// Addresses of admins. mail.adminEmail is added.
	AdminEmails []string `toml:"adminEmails"`
	// Numbers of admins, as +14165550100.
	AdminPhones []string `toml:"adminPhones"`
	// What is sent by which way.
	Rules []NotificationRule `toml:"rules"`
}

// NotificationRule is one rule.
type NotificationRule struct {
	// Event that the rule is about.
	EventType string `toml:"eventType"`
	// Ways: email, sms.
	Channels []string `toml:"channels"`
	// Whether the rule counts.
	Enabled bool `toml:"enabled" default:"true"`
}

// Log is where log lines go. They are JSON.
type Log struct {
	// Directory of log files. Empty: no files.
	Dir string `toml:"dir"`
	// Least level that is logged: debug, info, warn or error.
	Level string `toml:"level" default:"info"`
	// Whether lines go to standard output too.
	StandardOutput bool `toml:"standard_output" default:"true"`
	// File in dir for debug and info.
	InfoFile string `toml:"infoFile"`
	// File in dir for warnings.
	WarnFile string `toml:"warnFile"`
	// File in dir for errors.
	ErrorFile string `toml:"errorFile"`
}
