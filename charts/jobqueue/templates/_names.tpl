{{- define "jobqueue.labels" -}}
app.kubernetes.io/name: jobqueue
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "jobqueue.selector" -}}
app.kubernetes.io/name: jobqueue
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "jobqueue.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "jobqueue.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .uid }}
runAsGroup: {{ .uid }}
fsGroup: {{ .uid }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "jobqueue.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
{{- end }}

{{- define "jobqueue.password" -}}
valueFrom:
  secretKeyRef: { name: {{ .root.Values.passwordsSecret }}, key: {{ .key }} }
{{- end }}

{{- /* The environment of every pod that runs our image: passwords first, so that the URLs can refer to them. */ -}}
{{- define "jobqueue.environment" -}}
{{- $name := .Release.Name -}}
{{- $settings := dict -}}
{{- if .Values.broker.enabled }}{{- $_ := set $settings "JOBQUEUE_BROKER_URL" (printf "amqp://jobqueue:$(BROKER_PASSWORD)@%s-broker:5672//" $name) }}{{- end }}
{{- if .Values.registry.enabled }}{{- $_ := set $settings "JOBQUEUE_REGISTRY_URL" (printf "redis://:$(REGISTRY_PASSWORD)@%s-registry:6379/0" $name) }}{{- end }}
{{- if .Values.store.enabled }}
{{- $_ := set $settings "JOBQUEUE_STORAGE_URL" "s3://jobqueue" }}
{{- $_ := set $settings "JOBQUEUE_STORAGE_ENDPOINT" (printf "http://%s-store:9000" $name) }}
{{- $_ := set $settings "AWS_ACCESS_KEY_ID" "jobqueue" }}
{{- $_ := set $settings "AWS_SECRET_ACCESS_KEY" "$(STORE_PASSWORD)" }}
{{- $_ := set $settings "AWS_REGION" "us-east-1" }}
{{- end }}
{{- $settings = merge (dict) .Values.settings $settings -}}
- name: BROKER_PASSWORD
  {{- include "jobqueue.password" (dict "root" . "key" "broker-password") | nindent 2 }}
- name: REGISTRY_PASSWORD
  {{- include "jobqueue.password" (dict "root" . "key" "registry-password") | nindent 2 }}
- name: STORE_PASSWORD
  {{- include "jobqueue.password" (dict "root" . "key" "store-password") | nindent 2 }}
{{- range $key, $value := $settings }}
- name: {{ $key }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
